"""vLLM in a trainer's process against transformers on the same weights: tokens, log-probabilities, pictures."""

import copy

import pytest
import torch
from PIL import Image
from trl.trainer.grpo_trainer import GRPOTrainer

from prism_cli.assembly.response import grammar_of
from prism_cli.data.rows import dataset, row
from prism_cli.errors import PrismError
from prism_cli.evaluation.sampling import sample_responses
from prism_cli.models import Policy, load_policy, multimodal, placeholder_ids
from prism_cli.recipes.sections import ResponseSection
from tests.tiny import tiny_policy

TOKENS = 24
SIDES = (48, 96)


def picture(i):
    shades = torch.rand(SIDES[i % 2], 48, 3, generator=torch.Generator().manual_seed(i))
    return Image.fromarray((shades * 255).byte().numpy())


def disturb(module, seed, by=0.2):
    """Other weights, so that other tokens come."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(by * weight.std().nan_to_num(0.1) * torch.randn(weight.shape, generator=noise))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A trainer whose rollouts vLLM makes; 8 rollouts of 2 prompts a step."""
    from prism_cli.trainers.rollout import RolloutTrainer
    from prism_cli.trainers.setup import TrainerSetup
    from prism_cli.trainers.vllm_rollouts import VLLMRollouts

    model, processor = tiny_policy()
    model = copy.deepcopy(model)
    disturb(model, seed=0, by=1.0)
    folder = tmp_path_factory.mktemp("vllm")
    Policy(model, processor, grammar_of(ResponseSection()), None).save(folder / "model")
    rows = dataset(row(str(i), "what is at a1 ?", [picture(i)], answers=["red"]) for i in range(4))
    vllm = VLLMRollouts(
        True,
        {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_max_model_length": 256,
            "vllm_importance_sampling_mode": "token_truncate",
        },
        {},
    )
    options = {
        "output_dir": str(folder / "out"),
        "seed": 3,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": TOKENS,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
    }
    return RolloutTrainer(load_policy(folder / "model"), [some_reward], TrainerSetup(options, rows, vllm=vllm))


def some_reward(completions, **columns):
    return [float(i % 3) for i in range(len(completions))]


@pytest.fixture(autouse=True)
def own_weights(trainer):
    """Each test leaves the weights as it found them."""
    weights = copy.deepcopy(trainer.model.state_dict())
    yield
    trainer.model.load_state_dict(weights)
    trainer._last_loaded_step = -1


def by_both(trainer, count=4):
    """Greedy tokens by vLLM as it is now, and by transformers with the trainer's weights."""
    conversations = [multimodal(one["prompt"], one["images"]) for one in trainer.train_dataset][:count]
    prompts, images, _ = trainer._tokenize_prompts(conversations)
    vllm = trainer.vllm_generation
    vllm.temperature = 0.0
    try:
        _, tokens, logps, _ = vllm.generate(prompts, images, 1)
    finally:
        vllm.temperature = 1.0
    policy = trainer.processing_class
    found = sample_responses(
        trainer.model,
        policy,
        conversations,
        max_tokens=TOKENS,
        temperature=0.0,
        seed=0,
        suppress=placeholder_ids(policy),
        batch_size=count,
    )
    return [list(ids) for ids in tokens], [one.token_ids for one in found], logps


def test_greedy_tokens_follow_changed_weights(trainer):
    trainer.vllm_generation.sync_weights()
    before, same, _ = by_both(trainer)
    assert before == same
    assert len({tuple(ids) for ids in before}) > 1, "pictures must matter"
    disturb(trainer.model, seed=1)
    trainer.vllm_generation.sync_weights()
    after, same, _ = by_both(trainer)
    assert after == same
    assert after != before


def test_changed_eyes_are_seen_with_only_because_the_encoder_cache_is_emptied(trainer, monkeypatch):
    engine = trainer.vllm_generation.llm.llm_engine
    trainer.vllm_generation.sync_weights()
    before = by_both(trainer)[0]
    disturb(trainer.model.model.visual, seed=2, by=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "reset_encoder_cache", lambda: None)
        trainer.vllm_generation.sync_weights()
    stale, wanted, _ = by_both(trainer)
    assert stale == before
    assert stale != wanted
    trainer.vllm_generation.sync_weights()
    assert by_both(trainer)[0] == wanted


def test_log_probabilities_are_the_trainers_though_placeholders_are_left_out(trainer):
    """A policy in love with a placeholder: unmasked, its other tokens would have a fraction of their probability."""
    unloved = scored(trainer)
    eyes = placeholder_ids(trainer.processing_class)
    with torch.no_grad():
        words = trainer.model.get_output_embeddings().weight
        words[eyes] = 2 * words[unloved["completion_ids"].mode().values[0]]
    trainer._last_loaded_step = -1
    output = scored(trainer)
    assert not set(output["completion_ids"].flatten().tolist()) & set(eyes)
    mask = output["completion_mask"].bool()
    gap = (output["old_per_token_logps"] - output["sampling_per_token_logps"])[mask].abs()
    assert gap.max() < 1e-3
    assert torch.allclose(output["importance_sampling_ratio"][mask], torch.ones(()), atol=1e-3)
    head = trainer.model.get_output_embeddings()
    bias, head.bias = head.bias, torch.zeros_like(head.bias)
    unmasked = scored(trainer)
    head.bias = bias
    off = (unmasked["old_per_token_logps"] - unmasked["sampling_per_token_logps"])[unmasked["completion_mask"].bool()]
    assert off.abs().mean() > 0.01


def scored(trainer):
    rows = [trainer.train_dataset[i] for i in (0, 1) for _ in range(4)]
    # TRL's: ours leaves the second pass's log-probabilities out where each rollout is used once.
    return GRPOTrainer._generate_and_score_completions(trainer, rows)


def test_prompts_that_vllm_reads_otherwise_are_refused(trainer, monkeypatch):
    monkeypatch.setattr("prism_cli.trainers.vllm_rollouts.collapsed", lambda ids, mark: ids)
    conversations = [multimodal(one["prompt"], one["images"]) for one in trainer.train_dataset]
    prompts, images, _ = trainer._tokenize_prompts(conversations)
    with pytest.raises(PrismError, match=r"vLLM read prompt 0 as \d+ tokens where the policy's processor makes"):
        trainer.vllm_generation.generate(prompts, images, 1)


def test_training_ends_vllm_and_saves_no_bias(trainer):
    """The last test: there is no vLLM after it."""
    trainer.train()
    assert trainer.state.global_step == 2
    gaps = trainer.state.log_history[0]["sampling/sampling_logp_difference/mean"]
    assert gaps < 1e-4
    trainer.save_model()
    from safetensors import safe_open

    with safe_open(f"{trainer.args.output_dir}/model.safetensors", "pt") as saved:
        assert not [name for name in saved.keys() if "head.bias" in name]  # noqa: SIM118
