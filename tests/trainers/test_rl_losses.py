"""GRPO, DAPO and GSPO: their losses worked out by hand, against TRL's own pass, and with several updates a batch."""

import copy
from math import exp, log

import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer as PlainGRPO

from prism_cli.assembly.data import load_data
from prism_cli.assembly.response import grammar_of
from prism_cli.assembly.rewards import algorithm_of, reward_rules
from prism_cli.errors import RecipeError
from prism_cli.models import Policy, load_policy
from prism_cli.recipes.sections import ResponseSection, WorldData
from prism_cli.recipes.stages import RLRecipe
from prism_cli.responses import Grammar, Part
from prism_cli.stages import rl
from prism_cli.trainers.arguments import RolloutBatch
from prism_cli.trainers.grpo import GRPOTrainer
from prism_cli.trainers.setup import TrainerSetup
from prism_cli.trainers.verified_reward import VerifiedReward
from tests.tiny import tiny_policy

GROUP, PROMPTS = 4, 2
ALGORITHMS = ["grpo", "dapo", "gspo"]
WORLD = {"type": "world", "split": "train", "size": 8}


def options(kind, folder, **more):
    """The preset with the recipe's default clips."""
    recipe = RLRecipe.model_validate({"algorithm": {"type": kind}})
    batch = RolloutBatch(PROMPTS, GROUP, PROMPTS * GROUP, 1, 32, temperature=1.0)
    common = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "logging_steps": 1}
    common |= {"gradient_checkpointing": False, "remove_unused_columns": False, "save_strategy": "no"}
    return {**batch.arguments(), **common, **algorithm_of(recipe.algorithm).loss, **more}


def in_turn(*values):
    """A rule that gives these values over and over, whatever the response."""
    given = iter(range(10**6))
    rules = {"accuracy": lambda response, row, length: values[next(given) % len(values)]}
    return VerifiedReward(rules, {"accuracy": 1.0})


def rows_of(policy, size=8):
    return load_data(WorldData(type="world", split="train", size=size, seed=3), policy.settings)


# By hand --------------------------------------------------------------------------------------------------------------


class Fixed(GRPOTrainer):
    """Its log-probabilities are given, so that a loss can be worked out on paper."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        return self.logps, torch.zeros_like(self.logps), None


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """(algorithm, ratios of two rollouts' tokens, advantages) → loss, gradient by log-probability, logged metrics."""
    model, processor = tiny_policy()
    policy = Policy(copy.deepcopy(model), processor, Grammar({"all": Part((), 1.0)}, None), None)
    rows = rows_of(policy)

    def loss(kind, ratios, advantages):
        arguments = options(kind, tmp_path_factory.mktemp("loss"))
        trainer = Fixed(policy, in_turn(0.0, 1.0), TrainerSetup(arguments, rows))
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        width = max(map(len, ratios))
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ratios])
        old = torch.full(mask.shape, -1.0)
        moved = torch.tensor([[log(r) for r in one] + [5.0] * (width - len(one)) for one in ratios])
        trainer.logps = (old + moved).requires_grad_()
        ones = torch.ones(len(ratios), 1, dtype=torch.long)
        inputs = {"prompt_ids": ones, "prompt_mask": ones, "completion_ids": mask, "completion_mask": mask}
        inputs |= {"advantages": torch.tensor(advantages), "old_per_token_logps": old}
        value = trainer._compute_loss(trainer.model, inputs | {"num_items_in_batch": mask.sum()})
        value.backward()
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        return value.item(), trainer.logps.grad, metrics

    return loss


def test_grpo_clips_alike_on_both_sides_and_takes_the_mean_over_tokens(losses):
    # A = 1: 1.5 counts as 1.2 and 0.5 as it is. A = −1: 0.5 counts as 0.8, 1.5 as it is.
    loss, gradient, metrics = losses("grpo", [[1.5, 0.5, 1.0], [0.5, 1.5]], [1.0, -1.0])
    assert loss == pytest.approx(-(1.2 + 0.5 + 1.0 - 0.8 - 1.5) / 5)
    # The ratio's derivative by its log-probability is the ratio; what is clipped has none.
    assert gradient[0].tolist() == pytest.approx([0, -0.5 / 5, -1.0 / 5])
    assert gradient[1].tolist() == pytest.approx([0, 1.5 / 5, 0])
    assert metrics["clip_ratio/high_mean"] == pytest.approx(1 / 5)
    assert metrics["clip_ratio/low_mean"] == pytest.approx(1 / 5)


def test_dapo_lets_good_tokens_rise_further_than_bad_ones_fall(losses):
    loss, gradient, metrics = losses("dapo", [[1.5, 1.25], [0.7]], [1.0, -1.0])
    assert loss == pytest.approx(-(1.28 + 1.25 - 0.8) / 3)
    assert gradient.flatten().tolist() == pytest.approx([0, -1.25 / 3, 0, 0])
    assert metrics["clip_ratio/region_mean"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("kind", "bound"), [("grpo", 3.0), ("dapo", 10.0)])
def test_the_dual_clip_bounds_what_a_bad_token_that_became_likely_costs(losses, kind, bound):
    loss, gradient, _ = losses(kind, [[bound * 2, bound / 2], [bound * 2]], [-1.0, 1.0])
    high = {"grpo": 1.2, "dapo": 1.28}[kind]
    assert loss == pytest.approx((bound + bound / 2 - high) / 3)
    assert gradient.flatten().tolist() == pytest.approx([0, bound / 2 / 3, 0, 0], abs=1e-5)


def test_gspo_has_one_ratio_a_sequence_and_takes_the_mean_over_sequences(losses):
    # ln 2 and −ln 2 are 0 in the mean: ratio 1. The other's is e^0.0003, within 1 + 4e-4; three tokens share it.
    small = exp(3e-4)
    loss, gradient, metrics = losses("gspo", [[2.0, 0.5], [small, small, small]], [2.0, 1.0])
    assert loss == pytest.approx(-(2.0 * 1 + small) / 2)
    assert gradient[0].tolist() == pytest.approx([-2.0 / 2 / 2] * 2 + [0])
    assert gradient[1].tolist() == pytest.approx([-small / 3 / 2] * 3)
    assert metrics["clip_ratio/region_mean"] == 0


def test_gspo_clips_whole_sequences_to_its_narrow_band(losses):
    # Mean log-ratio 0.001: above 1 + 4e-4. The other's −0.001: below 1 − 3e-4. Both are clipped, in all their tokens.
    rise, fall = exp(0.001), exp(-0.001)
    loss, gradient, metrics = losses("gspo", [[rise, rise], [fall]], [1.0, -1.0])
    assert loss == pytest.approx(-(1.0004 - 0.9997) / 2, abs=1e-7)
    assert gradient.abs().sum() == 0
    assert metrics["clip_ratio/region_mean"] == 1


def test_the_over_long_buffer_takes_a_reward_away_token_by_token():
    settings = {"algorithm": {"type": "dapo", "overlong_buffer": 16}, "max_response_tokens": 64}
    rules = reward_rules(RLRecipe.model_validate(settings))
    response = grammar_of(ResponseSection()).parse("<caption> a </caption> <think> b </think> <answer> 7 </answer>")
    row = {"id": "0", "answers": ["7"], "prompt": [{"role": "user", "content": "how many ?"}]}
    rules.score([response] * 4, [row] * 4, [48, 56, 64, 1])
    rewards = [sum(rules.weights[name] * values[i] for name, values in rules.values.items()) for i in range(4)]
    assert rewards == pytest.approx([1.0, 0.5, 0.0, 1.0])


# Against TRL's own pass -----------------------------------------------------------------------------------------------


class Plain(GRPOTrainer):
    """The same trainer with TRL's padded pass in place of the packed one."""

    _get_per_token_logps_and_entropies = PlainGRPO._get_per_token_logps_and_entropies


@pytest.fixture(scope="module")
def saved(trained):
    return load_policy(trained / "model")


def gradients(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_the_packed_loss_and_its_gradient_are_trls(kind, saved, tmp_path):
    policy = saved.with_model(copy.deepcopy(saved.model))
    rows = rows_of(policy)
    ours, trls = (
        one(policy, in_turn(0.0, 1.0, 1.0), TrainerSetup(options(kind, tmp_path), rows)) for one in (GRPOTrainer, Plain)
    )
    for trainer in (ours, trls):
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(0)
    batch = ours._generate_and_score_completions([rows[i] for i in range(PROMPTS) for _ in range(GROUP)])
    # As if the weights had moved since: some ratios are inside the clip range and some outside.
    spread = 3e-3 if kind == "gspo" else 0.3
    with torch.no_grad():
        logps = trls._get_per_token_logps_and_entropies(
            trls.model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
            batch["completion_ids"].shape[1],
            **{k: batch[k] for k in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")},
        )[0]
    batch["old_per_token_logps"] = logps + spread * torch.randn(len(logps), 1) + 0.01 * spread * torch.randn_like(logps)
    packed, plain = gradients(ours, batch), gradients(trls, batch)
    assert packed[0] == pytest.approx(plain[0], abs=1e-6)
    assert packed[1].keys() == plain[1].keys()
    worst = max((packed[1][name] - plain[1][name]).abs().max().item() for name in plain[1])
    largest = max(gradient.abs().max().item() for gradient in plain[1].values())
    assert worst < 1e-3 * largest
    assert not ours.packed_logps.reason_said, "it was packed"
    assert 0 < ours._metrics["train"]["clip_ratio/region_mean"][0] < 1


def test_the_rounding_of_a_second_pass_never_reaches_gspos_clip_where_each_rollout_is_used_once(tmp_path, monkeypatch):
    own = PlainGRPO._generate_and_score_completions

    def with_second_pass(self, inputs):
        """As with vLLM: log-probabilities of another pass of the same weights, whose rounding is another."""
        output = own(self, inputs)
        noise = 1e-2 * torch.randn(output["completion_ids"].shape)
        return output | {"old_per_token_logps": -1.0 + noise}

    monkeypatch.setattr(PlainGRPO, "_generate_and_score_completions", with_second_pass)
    model, processor = tiny_policy()
    policy = Policy(copy.deepcopy(model), processor, Grammar({"all": Part((), 1.0)}, None), None)
    for updates in (1, 2):
        more = {"num_iterations": updates, "gradient_accumulation_steps": 1}
        arguments = options("gspo", tmp_path) | more
        trainer = GRPOTrainer(policy, in_turn(0.0, 1.0), TrainerSetup(arguments, rows_of(policy)))
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        rows = trainer.train_dataset
        batch = trainer._generate_and_score_completions([rows[i] for i in range(PROMPTS) for _ in range(GROUP)])
        trainer._compute_loss(trainer.model, batch)
        clipped = trainer._metrics["train"]["clip_ratio/region_mean"][-1]
        assert (clipped == 0) == (updates == 1), "a batch that is used again needs what it was sampled with"


# Several updates a batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "max_steps", "every", "evaluate", "refused"),
    [
        (2, 8, 4, None, None),
        (3, None, 6, 9, None),
        (0, 8, 4, None, "0 updates a batch"),
        (2, 7, 4, None, "max_steps 7 is not a multiple"),
        (2, 8, 3, None, "checkpoint.every 3"),
        (2, 8, 4, 3, "checkpoint.evaluate_every 3"),
    ],
)
def test_a_run_ends_and_is_kept_only_where_a_batch_is_used_up(updates, max_steps, every, evaluate, refused):
    settings = {"data": WORLD, "eval_data": WORLD, "model": {"type": "tiny"}, "max_steps": max_steps}
    settings |= {"trainer": {"num_iterations": updates}, "checkpoint": {"every": every, "evaluate_every": evaluate}}
    recipe = RLRecipe.model_validate(settings)
    if refused is None:
        assert f"for {updates} steps" in dict(rl.check(recipe))["training"]
    else:
        with pytest.raises(RecipeError, match=refused):
            rl.check(recipe)


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_the_second_update_of_a_batch_is_clipped(kind, saved, tmp_path):
    policy = saved.with_model(copy.deepcopy(saved.model))
    more = {"num_iterations": 2, "max_steps": 2, "learning_rate": 5e-3}
    rules = in_turn(0.0, 1.0, 1.0)
    trainer = GRPOTrainer(policy, rules, TrainerSetup(options(kind, tmp_path, **more), rows_of(policy)))
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["clip_ratio/region_mean"] == 0, "before the first update every ratio is 1"
    assert second["clip_ratio/region_mean"] > 0
