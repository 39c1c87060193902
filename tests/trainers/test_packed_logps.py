"""The policy's packed log-probabilities against TRL's own, on the same rollouts and the same model."""

import copy
import inspect
import warnings

import pytest
import torch
from PIL import Image
from trl.trainer.grpo_trainer import GRPOTrainer

from prism_cli.data.rows import dataset, row
from prism_cli.models import Policy
from prism_cli.responses import Grammar, Part
from prism_cli.trainers.arguments import RolloutBatch
from prism_cli.trainers.packed_logps import PackedLogps, prompts_together
from prism_cli.trainers.rollout import RolloutTrainer
from prism_cli.trainers.setup import TrainerSetup
from tests.tiny import tiny_policy

GROUP, PROMPTS = 4, 3
COLUMNS = ["prompt_ids", "prompt_mask", "completion_ids", "completion_mask"]


def picture(color, size=(48, 48)):
    return Image.new("RGB", size, color)


@pytest.fixture(scope="module")
def rows():
    """Two pictures of different sizes and, last, the first's question about another picture."""
    return dataset(
        [
            row("a", "what is at b2 ?", [picture("red")]),
            row("b", "what is right of a1 and so ?", [picture("green", (96, 48))]),
            row("c", "what is at b2 ?", [picture("blue")]),
        ]
    )


@pytest.fixture
def policy():
    model, processor = tiny_policy()
    return Policy(copy.deepcopy(model), processor, Grammar({"all": Part((), 1.0)}, None), None)


def reward(completions, **columns):
    """Something that differs within a group and needs no model."""
    return [float(len(set(completion[-1]["content"].split()))) for completion in completions]


def trainer(policy, rows, folder, lora=None, micro_batch=PROMPTS * GROUP, **more):
    batch = RolloutBatch(PROMPTS, GROUP, micro_batch, 1, 24, temperature=1.0).arguments()
    common = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "num_generations_eval": 2}
    more = {"gradient_checkpointing": False, "remove_unused_columns": False, "disable_tqdm": True, **more}
    one = RolloutTrainer(policy, [reward], TrainerSetup({**batch, **common, **more}, rows, lora=lora))
    one.current_gradient_accumulation_steps = one.args.gradient_accumulation_steps  # set when training begins
    return one


class TRLsWay(RolloutTrainer):
    """The same trainer without packing and without its order of rows."""

    _get_per_token_logps_and_entropies = GRPOTrainer._get_per_token_logps_and_entropies
    _prepare_inputs = GRPOTrainer._prepare_inputs


def rolled_out(one, rows):
    one.model.train()
    torch.manual_seed(0)
    return one._generate_and_score_completions([rows[i] for i in range(PROMPTS) for _ in range(GROUP)])


def both_ways(one, inputs, **more):
    """Log-probabilities, entropies, loss and gradients: packed, and TRL's."""
    ids, mask = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], 1) for x in ("ids", "mask"))
    images = {k: inputs.get(k) for k in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")}
    keep = inputs["completion_ids"].shape[1]
    results = []
    for way in (RolloutTrainer, GRPOTrainer):
        one._get_per_token_logps_and_entropies = way._get_per_token_logps_and_entropies.__get__(one)
        logps, entropy, _ = one._get_per_token_logps_and_entropies(
            one.model, ids, mask, keep, compute_entropy=True, **images, **more
        )
        one.model.zero_grad()
        loss = one._compute_loss(one.model, inputs)
        loss.backward()
        gradients = {name: w.grad.clone() for name, w in one.model.named_parameters() if w.grad is not None}
        results.append((logps.detach(), entropy.detach(), float(loss.detach()), gradients))
    return results


def assert_equal(packed, own):
    assert torch.allclose(packed[0], own[0], atol=1e-5)
    assert torch.allclose(packed[1], own[1], atol=1e-5)
    assert packed[2] == pytest.approx(own[2], abs=1e-5)
    assert set(packed[3]) == set(own[3])
    whole = torch.cat([gradient.flatten() for gradient in own[3].values()]).norm()
    assert whole > 1e-3
    apart = torch.cat([(packed[3][name] - gradient).flatten() for name, gradient in own[3].items()]).norm()
    assert apart < 1e-5 * whole


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_equal_trls(policy, rows, tmp_path, checkpointing, capsys):
    one = trainer(policy, rows, tmp_path, gradient_checkpointing=checkpointing)
    inputs = rolled_out(one, rows)
    assert len({tuple(grid) for grid in inputs["image_grid_thw"].tolist()}) == 2, "two sizes of picture"
    lengths = inputs["completion_mask"].sum(1)
    inputs["completion_mask"][0, lengths[0] // 2 :] = 0  # rollouts of unlike lengths
    assert_equal(*both_ways(one, inputs))
    # DeepSpeed prints a line of its own when it is first imported, here or in a test before.
    assert "prompts are not shared" not in capsys.readouterr().out


def test_a_rollout_that_is_masked_whole_takes_no_part(policy, rows, tmp_path):
    one = trainer(policy, rows, tmp_path)
    inputs = rolled_out(one, rows)
    inputs["completion_mask"][[1, 4, 5, 6, 7]] = 0  # one of a prompt's, and all of another's
    assert_equal(*both_ways(one, inputs))


def test_chunks_smaller_than_a_group_give_the_same(policy, rows, tmp_path):
    one = trainer(policy, rows, tmp_path)
    packed, own = both_ways(one, rolled_out(one, rows), batch_size=3)
    assert_equal(packed, own)


def test_prompts_without_pictures_are_packed(policy, tmp_path):
    texts = dataset([row(str(i), q, []) for i, q in enumerate(["what is at b2 ?", "and so ?", "is a1 red ?"])])
    one = trainer(policy, texts, tmp_path)
    assert_equal(*both_ways(one, rolled_out(one, texts)))


def test_adapters_are_packed(policy, rows, tmp_path, capsys):
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v|up)_proj", init_lora_weights=False)
    one = trainer(policy, rows, tmp_path, lora=lora, beta=0.1)
    inputs = rolled_out(one, rows)
    packed, own = both_ways(one, inputs)
    assert_equal(packed, own)
    assert all("lora" in name for name in own[3])
    assert capsys.readouterr().out == ""
    # Now by TRL's way: the reference is the model without its adapter.
    assert torch.allclose(inputs["ref_per_token_logps"], rolled_out(one, rows)["ref_per_token_logps"], atol=1e-5)
    assert not torch.allclose(inputs["ref_per_token_logps"], own[0], atol=1e-2)


def trained(kind, policy, rows, folder, **more):
    one = trainer(policy.with_model(copy.deepcopy(policy.model)), rows, folder, **more)
    one.__class__ = kind
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.train()
    return dict(one.model.named_parameters()), one


def tokens_read(model):
    lengths = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    return lengths


def test_a_whole_training_ends_at_the_same_weights(policy, rows, tmp_path):
    """Six micro-batches of half a group a step, three steps; SGD, whose steps are gradients, not their signs."""
    settings = {"max_steps": 3, "learning_rate": 0.1, "micro_batch": 2, "optim": "sgd"}
    before = copy.deepcopy(dict(policy.model.named_parameters()))
    ours, _ = trained(RolloutTrainer, policy, rows, tmp_path / "ours", **settings)
    own, _ = trained(TRLsWay, policy, rows, tmp_path / "own", **settings)
    moved = max(float((own[name] - weight).detach().abs().max()) for name, weight in before.items())
    apart = max(float((own[name] - weight).detach().abs().max()) for name, weight in ours.items())
    assert moved > 1e-3
    assert apart < 1e-4 * moved


def test_the_update_reads_each_prompt_once_a_micro_batch(policy, rows, tmp_path):
    one = trainer(policy, rows, tmp_path, micro_batch=GROUP, max_steps=1)
    one.model.train()
    one._prepare_inputs([rows[i] for i in range(PROMPTS) for _ in range(GROUP)])
    batches = one._buffered_inputs
    lengths = tokens_read(one.model)
    for batch in batches:
        one._compute_loss(one.model, batch)
    expected = [int(b["prompt_mask"][0].sum()) - 1 + int(b["completion_mask"].sum()) for b in batches]
    assert lengths == expected


def test_rollouts_of_a_prompt_lie_in_one_micro_batch_and_nothing_else_changes(policy, rows, tmp_path):
    one = trainer(policy, rows, tmp_path, micro_batch=GROUP)
    batch = [rows[i] for i in range(PROMPTS) for _ in range(GROUP)]
    one.model.train()
    torch.manual_seed(0)
    GRPOTrainer._prepare_inputs(one, batch)
    shuffled = one._buffered_inputs
    ordered = prompts_together(shuffled)
    assert [set(micro) for micro in ordered] == [set(micro) for micro in shuffled]

    def facts(micro):
        pixels = micro["pixel_values"].split(micro["image_grid_thw"].prod(-1).tolist())
        columns = [micro[name] for name in COLUMNS] + [micro["advantages"].unsqueeze(1)]
        return [
            (float(image.double().sum()), *(tuple(column[n].tolist()) for column in columns))
            for n, image in enumerate(pixels)
        ]

    assert sorted(fact for micro in ordered for fact in facts(micro)) == sorted(
        fact for micro in shuffled for fact in facts(micro)
    )
    pictures = [{fact[0] for fact in facts(micro)} for micro in ordered]
    assert [len(kinds) for kinds in pictures] == [1, 1, 1]
    assert len(set.union(*pictures)) == PROMPTS
    assert any(len({fact[0] for fact in facts(micro)}) > 1 for micro in shuffled), "TRL scattered them"


@pytest.mark.parametrize("reason", ["no two rollouts of a micro-batch answer one prompt", "attention is eager"])
def test_where_packing_does_not_apply_trls_way_is_taken_and_said_once(reason, policy, rows, tmp_path, capsys):
    if "eager" in reason:
        policy.model.set_attn_implementation("eager")
        one = trainer(policy, rows, tmp_path)
        packed, own = both_ways(one, rolled_out(one, rows))
    else:
        one = trainer(policy, rows, tmp_path)
        packed, own = both_ways(one, rolled_out(one, rows), batch_size=1)
    assert torch.equal(packed[0], own[0])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("prompts are not shared") == 1
    assert reason in said
    assert ("tokens a pass instead of" in said) == ("eager" in reason)


def test_trl_still_has_the_seams():
    parameters = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert parameters[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    ours = inspect.signature(PackedLogps.__call__).parameters
    known = [name for name, one in ours.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert set(known) <= set(parameters)
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._buffered_inputs = [" in source
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in source
