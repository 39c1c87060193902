"""Dynamic sampling: which groups make up a batch, that only they move the weights, that a run can be continued."""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich import get_console
from safetensors.torch import load_file
from transformers import TrainerCallback

from prism_cli.assembly.data import load_data
from prism_cli.errors import PrismError, RecipeError
from prism_cli.models import Policy
from prism_cli.recipes.sections import WorldData
from prism_cli.responses import Grammar, Part
from prism_cli.trainers.algorithms import TOKEN_LEVEL, Resampling
from prism_cli.trainers.arguments import RolloutBatch
from prism_cli.trainers.columns import batch, columns
from prism_cli.trainers.dapo import DAPOTrainer
from prism_cli.trainers.dynamic_sampling import DynamicSampling, choose, filled_up
from prism_cli.trainers.grpo import GRPOTrainer, fill_unscored
from prism_cli.trainers.prompts import PromptCursor
from prism_cli.trainers.setup import TrainerSetup
from prism_cli.trainers.verified_reward import VerifiedReward
from tests.tiny import tiny_policy

NAN = float("nan")

# Which groups are kept ------------------------------------------------------------------------------------------------


def test_only_groups_with_right_and_wrong_rollouts_are_kept_as_far_as_there_is_room():
    groups = [[1, 1], [1, 0], [0, 0], [NAN, 1], [NAN, NAN], [0.5, 0.5], [0, 1]]
    found = choose(torch.tensor([groups]), room=[1])
    assert found.keep.tolist() == [[False, True, False, False, False, False, False]]
    # Solved: the first, and the fourth as far as it could be judged. Failed: all wrong, and equally right in part.
    assert (found.solved, found.failed, found.unscored) == (2, 2, 1)
    assert choose(torch.tensor([groups]), room=[2]).keep.sum() == 2


def test_each_process_fills_its_own_share():
    accuracy = torch.tensor([[[0, 1], [0, 1], [1, 0]], [[0, 0], [1, 1], [0, 1]]]).float()
    assert choose(accuracy, room=[2, 2]).keep.tolist() == [[True, True, False], [False, False, True]]
    assert choose(accuracy, room=[0, 1]).keep.tolist() == [[False, False, False], [False, False, True]]


def output_of(indices, group=2):
    """What a generation gives, as far as sampling looks at it: a token and a mark for each rollout."""
    ones = torch.ones(len(indices) * group, 1, dtype=torch.long)
    which = torch.tensor([i for i in indices for _ in range(group)])
    same = {"prompt_ids": ones, "prompt_mask": ones, "completion_mask": ones, "advantages": which.float()}
    return same | {"completion_ids": which.unsqueeze(1), "num_items_in_batch": ones.sum()}


def sampling(accuracies, count=100, process=(0, 1), prompts=2, oversample=2, max_rounds=3):
    """Sampling over rows in their order, whose groups of two have these accuracies; and what it asked to roll out."""
    asked = []
    cursor = PromptCursor(count, lambda epoch: list(range(count)))
    one = DynamicSampling(Resampling(oversample, max_rounds), prompts, 2, cursor, 0, process)

    def roll_out(indices):
        asked.append(indices)
        a_round = one.prompts * oversample
        known = [accuracies[i] for i in range((len(asked) - 1) * a_round, len(asked) * a_round)]
        return output_of(indices), torch.tensor(known).float().flatten()

    return one, roll_out, asked


MIXED, SOLVED, FAILED = [0, 1], [1, 1], [0, 0]


def test_a_batch_is_refilled_with_the_next_prompts_until_it_is_full():
    one, roll_out, asked = sampling([SOLVED, FAILED, SOLVED, MIXED, FAILED, MIXED, MIXED, MIXED])
    found = one.fill(roll_out)
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found["advantages"].tolist() == [3, 3, 5, 5]
    assert found["completion_mask"].flatten().tolist() == [1, 1, 1, 1]
    expected = {"kept": 2, "dropped_solved": 2, "dropped_failed": 2, "dropped_unscored": 0, "unused": 2, "rounds": 2}
    assert one.tally.metrics() == {f"sampling/{name}": value for name, value in expected.items()}
    assert one.cursor.seen == 8, "the next batch begins with prompts none of which was looked at"


def test_after_the_last_round_the_rest_carries_no_loss():
    one, roll_out, asked = sampling([SOLVED, MIXED, SOLVED, FAILED, SOLVED, SOLVED, FAILED, FAILED], max_rounds=2)
    found = one.fill(roll_out)
    assert len(asked) == 2
    assert found["advantages"].tolist() == [1, 1, 1, 1], "the kept rollouts and their copies"
    assert found["completion_mask"].flatten().tolist() == [1, 1, 0, 0]


def test_where_nothing_was_kept_nothing_carries_loss():
    one, roll_out, _ = sampling([SOLVED] * 4, max_rounds=1)
    assert one.fill(roll_out)["completion_mask"].sum() == 0
    assert one.tally.kept == 0


def test_processes_decide_alike_and_keep_their_own_rollouts():
    accuracies = [MIXED, SOLVED, FAILED, FAILED, FAILED, SOLVED, MIXED, MIXED]
    kept = []
    for rank in (0, 1):
        one, roll_out, asked = sampling(accuracies, process=(rank, 2))
        kept.append(one.fill(roll_out)["advantages"].tolist())
        assert len(asked) == 2, "the second process had none after the first round"
        assert one.tally.kept == 2
    assert kept == [[0, 0], [6, 6]]
    with pytest.raises(RecipeError, match="2 can't be divided among 3 processes"):
        sampling(accuracies, process=(0, 3))


def test_a_step_never_rolls_a_prompt_out_twice():
    one, roll_out, asked = sampling([SOLVED] * 8, count=7, max_rounds=10)
    one.fill(roll_out)
    assert asked == [[0, 1, 2, 3]], "another round of four would begin the rows anew"
    assert sampling([SOLVED], count=3, prompts=3, oversample=4)[0].a_round == 3


def test_fewer_rounds_than_asked_for_are_said_and_so_are_prompts_without_an_accuracy(random_policy, rows, tmp_path):
    outcomes = Outcomes(*[[None] * GROUP] * 8)
    with get_console().capture() as said:
        trainer = trainer_of(random_policy, rows.select(range(9)), tmp_path, outcomes, rounds=3, max_steps=1)
        trainer.train()
    spoken = " ".join(said.get().split())
    assert "9 rows are enough for 2 rounds of 4 prompts a step, not 3 rounds of 4" in spoken
    assert "none of 8 prompts had rollouts both right and wrong in 2 rounds (8 had no accuracy)" in spoken
    assert trainer.state.log_history[0]["sampling/dropped_unscored"] == 8


def test_a_round_that_fails_leaves_the_position_where_it_was():
    one, roll_out, asked = sampling([SOLVED] * 4)

    def fails_later(indices):
        if asked:
            raise PrismError("the judge is gone")
        return roll_out(indices)

    with pytest.raises(PrismError, match="the judge is gone"):
        one.fill(fails_later)
    assert one.cursor.seen == 0


def test_the_cursor_goes_on_in_the_next_epochs_order():
    def order(epoch):
        return [[0, 1, 2], [2, 0, 1]][epoch]

    cursor = PromptCursor(3, order)
    assert [cursor.take(2), cursor.take(2), cursor.take(2)] == [[0, 1], [2, 2], [0, 1]]
    assert PromptCursor(3, order, seen=4).take(1) == [0]


# Batches of rounds ----------------------------------------------------------------------------------------------------


def test_rollouts_of_rounds_with_other_lengths_and_pictures_are_laid_out_as_one_batch():
    # Prompts of 1 and 2 tokens, completions of 1 and 2; the first has a picture of 1 × 2 patches, the second of 2 × 2.
    first = {
        "prompt_ids": torch.tensor([[5]]),
        "prompt_mask": torch.tensor([[1]]),
        "completion_ids": torch.tensor([[6, 7]]),
        "completion_mask": torch.tensor([[1, 1]]),
        "old_per_token_logps": torch.tensor([[-0.5, -0.6]]),
        "mm_token_type_ids": torch.tensor([[1, 0, 0]]),
        "advantages": torch.tensor([0.25]),
        "pixel_values": torch.tensor([[1.0], [2.0]]),
        "image_grid_thw": torch.tensor([[1, 1, 2]]),
        "num_images": [1],
        "num_items_in_batch": torch.tensor(2),
    }
    # Among two others, padded: the second of three rows.
    second = {
        "prompt_ids": torch.tensor([[1, 1, 1], [0, 8, 9], [1, 1, 1]]),
        "prompt_mask": torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[1, 1, 1], [4, 0, 0], [1, 1, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]),
        "old_per_token_logps": torch.tensor([[-9.0] * 3, [-0.7, 0, 0], [-9.0] * 3]),
        "mm_token_type_ids": torch.tensor([[1] * 6, [0, 0, 1, 0, 0, 0], [1] * 6]),
        "advantages": torch.tensor([9.0, 0.75, 9.0]),
        "pixel_values": torch.tensor([[9.0], [3.0], [4.0], [5.0], [6.0]]),
        "image_grid_thw": torch.tensor([[1, 1, 1], [1, 2, 2]]),
        "num_images": [1, 1, 0],
        "num_items_in_batch": torch.tensor(6),
    }
    one, other = columns(first), columns(second)
    merged = batch({name: [*values, other[name][1]] for name, values in one.items()}, pad_id=99)
    expected = {
        "prompt_ids": [[99, 5], [8, 9]],
        "prompt_mask": [[0, 1], [1, 1]],
        "completion_ids": [[6, 7], [4, 99]],
        "completion_mask": [[1, 1], [1, 0]],
        "old_per_token_logps": [[-0.5, -0.6], [-0.7, 0.0]],
        "mm_token_type_ids": [[0, 1, 0, 0], [0, 1, 0, 0]],
        "advantages": [0.25, 0.75],
        "pixel_values": [[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]],
        "image_grid_thw": [[1, 1, 2], [1, 2, 2]],
    }
    assert merged.pop("num_images") == [1, 1]
    assert merged.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(merged[name], torch.tensor(values)), name


def test_copies_that_fill_up_are_spread_over_the_kept_rollouts():
    kept = columns(output_of([3, 4], group=1))
    filled = filled_up(kept, kept, size=5)
    assert torch.stack(filled["advantages"]).tolist() == [3, 4, 3, 4, 3]
    assert torch.stack(filled["completion_mask"]).flatten().tolist() == [1, 1, 0, 0, 0]


# In training ----------------------------------------------------------------------------------------------------------

GROUP, PROMPTS = 4, 4


@pytest.fixture(scope="module")
def random_policy():
    model, processor = tiny_policy()
    return Policy(model, processor, Grammar({"all": Part((), 1.0)}, None), None)


@pytest.fixture(scope="module")
def rows(random_policy):
    return load_data(WorldData(type="world", split="train", size=40, seed=3), random_policy.settings)


class Outcomes:
    """Rules that judge groups in turn as told: each prompt's rollouts have these accuracies."""

    def __init__(self, *groups):
        self.groups, self.judged = groups, []

    def reward(self):
        calls = itertools.count()

        def accuracy(response, row, length):
            call = next(calls)
            self.judged.append(row["id"])
            group = self.groups[call // GROUP] if call // GROUP < len(self.groups) else [0] * GROUP
            return group[call % GROUP]

        rules = {"accuracy": accuracy, "long": lambda response, row, length: float(length % 2)}
        return VerifiedReward(rules, {"accuracy": 0.8, "long": 0.2})


GOOD, ALL_RIGHT, ALL_WRONG = [1, 0, 1, 0], [1] * GROUP, [0] * GROUP


def setup_of(rows, folder, micro_batch=4, callbacks=(), **more):
    cut = RolloutBatch(PROMPTS, GROUP, micro_batch, 1, 12, temperature=1.0).arguments()
    common = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no"}
    common |= {"gradient_checkpointing": False, "remove_unused_columns": False, "logging_steps": 1}
    arguments = {**cut, **common, **TOKEN_LEVEL, "weight_decay": 0.1, "learning_rate": 1e-3, **more}
    return TrainerSetup(arguments, rows, callbacks=callbacks)


def trainer_of(random_policy, rows, folder, outcomes, rounds=2, **more):
    policy = random_policy.with_model(copy.deepcopy(random_policy.model))
    return DAPOTrainer(policy, outcomes.reward(), setup_of(rows, folder, **more), Resampling(1, rounds))


def test_the_gradient_is_that_of_the_kept_groups_alone(random_policy, rows, tmp_path):
    outcomes = Outcomes(ALL_RIGHT, GOOD, ALL_WRONG, ALL_WRONG, ALL_WRONG, ALL_RIGHT, ALL_RIGHT, [0, 0, 0, 1])
    trainer = trainer_of(random_policy, rows, tmp_path, outcomes)
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 4
    order = trainer.sampling.cursor.order(0)
    for trainer._step in range(4):
        trainer.compute_loss(model, trainer._prepare_inputs([])).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert outcomes.judged[::GROUP] == [rows["id"][i] for i in order[:8]], "the epoch's order, none looked at twice"

    # The two kept groups by themselves, in one pass; their advantages and the mean over their tokens by hand.
    micro = trainer._buffered_inputs
    merged = {name: [one for part in micro for one in columns(part)[name]] for name in columns(micro[0])}
    real = [i for i, mask in enumerate(merged["completion_mask"]) if mask.any()]
    assert len(real) == 2 * GROUP
    alone = batch({name: [values[i] for i in real] for name, values in merged.items()}, 0)
    tokens = int(alone["completion_mask"].sum())
    assert all(int(part["num_items_in_batch"]) == tokens for part in micro)
    lengths = alone["completion_mask"].sum(1)
    prompts = [tuple(ids.tolist()) for ids in alone["prompt_ids"]]
    for prompt in set(prompts):
        mine = [i for i, one in enumerate(prompts) if one == prompt]
        advantages = alone["advantages"][mine]
        assert advantages.sum() == pytest.approx(0, abs=1e-4)
        assert advantages.std() == pytest.approx(1, abs=1e-2)
    model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer.args.steps_per_generation = 1
    loss = trainer.compute_loss(model, alone | {"num_items_in_batch": torch.tensor(tokens)})
    assert loss.item() == pytest.approx(-(alone["advantages"] * lengths).sum().item() / tokens, abs=1e-5)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, atol=1e-6, rtol=1e-3), name


class Weights(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.after = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after.append({name: p.detach().clone() for name, p in model.named_parameters()})


def test_a_step_that_kept_nothing_makes_no_update_and_says_so(random_policy, rows, tmp_path):
    # A full step, which gives the optimiser momentum; one that finds nothing in both rounds; one with half a batch.
    half = [GOOD, ALL_RIGHT, GOOD, ALL_RIGHT, *[ALL_WRONG] * 4]
    outcomes, weights = Outcomes(*[GOOD] * 4, *[ALL_RIGHT] * 4, *[ALL_WRONG] * 4, *half), Weights()
    trainer = trainer_of(random_policy, rows, tmp_path, outcomes, callbacks=[weights], max_steps=3)
    with get_console().capture() as said:
        trainer.train()
    first, second, third = weights.after
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(second[name], third[name]) for name in first)
    spoken = " ".join(said.get().split())
    assert "step 2: none of 8 prompts had rollouts both right and wrong in 2 rounds; no update is made" in spoken
    assert "step 3: 2 of 8 prompts had rollouts both right and wrong in 2 rounds; the step trains on these" in spoken
    kept, solved, failed, rounds = (
        [line[f"sampling/{name}"] for line in trainer.state.log_history[:3]]
        for name in ("kept", "dropped_solved", "dropped_failed", "rounds")
    )
    assert (kept, solved, failed, rounds) == ([4, 0, 2], [0, 4, 2], [0, 4, 4], [1, 2, 2])
    # What no token was left to measure is not logged as 0, neither of a whole step nor of a pass of copies alone.
    entropy = [line["entropy"] for line in trainer.state.log_history[:3]]
    assert entropy[1] is None
    assert entropy[2] == pytest.approx(entropy[0], rel=0.05)
    assert [line["sampling/epoch"] for line in trainer.state.log_history[:3]] == pytest.approx([0.1, 0.3, 0.5])
    # What is logged of rewards is about all rollouts: one in 8 of the last step's is a right one of a mixed group …
    assert trainer.state.log_history[2]["rewards/accuracy/mean"] == pytest.approx((2 * 2 + 2 * 4) / 32)
    # … while what is dropped has been looked at, and comes again in the next epoch only.
    assert len(outcomes.judged) // GROUP == 4 + 8 + 8 == len(set(outcomes.judged))


# Unscored rewards -----------------------------------------------------------------------------------------------------


def test_an_unscored_reward_becomes_its_groups_mean():
    rewards = torch.tensor([[1.0, NAN], [NAN, NAN], [0.0, NAN], [0.5, 1.0], [NAN, 0.0], [NAN, 0.5]])
    expected = [[1.0, 0.0], [0.5, 0.0], [0.0, 0.0], [0.5, 1.0], [0.5, 0.0], [0.5, 0.5]]
    assert fill_unscored(rewards, group=3).tolist() == expected


def test_unscored_rollouts_get_no_advantage_and_are_counted(random_policy, rows, tmp_path):
    outcomes = Outcomes([1, None, 0, None], [None] * 4, GOOD, GOOD)
    policy = random_policy.with_model(copy.deepcopy(random_policy.model))
    trainer = GRPOTrainer(policy, outcomes.reward(), setup_of(rows, tmp_path, micro_batch=16))
    trainer.rewards.rules["long"] = lambda response, row, length: 0.0
    trainer.model.train()
    found = trainer._generate_and_score_completions([rows[i] for i in range(PROMPTS) for _ in range(GROUP)])
    # Rewards 0.8 · (1, ½, 0, ½): the first group's mean is 0.4, its deviation 0.8 · √(½ / 3).
    a = 0.4 / (0.8 * (0.5 / 3) ** 0.5)
    assert found["advantages"][:8].tolist() == pytest.approx([a, 0, -a, 0, 0, 0, 0, 0], abs=1e-3)
    metrics = trainer._metrics["train"]
    assert metrics["rewards/unscored_fraction"] == [6 / 16]
    assert metrics["rewards/accuracy/mean"][-1] == pytest.approx(5 / 10), "of the ten that were scored"


# Continuing, and several processes ------------------------------------------------------------------------------------

# Twelve rows are passed in three steps or fewer: each takes four prompts, or eight.
LINE = (
    "rl tiny --from TRAINED algorithm={type:~dapo,~overlong_buffer:~8,~oversample:~2,~max_rounds:~2} data.size=12 "
    "max_steps=4 checkpoint.every=2 prompts_per_step=2 rollouts=4 micro_batch=4 max_response_tokens=48 temperature=1.3 "
    "eval_data=null checkpoint.evaluate_every=null"
)


def test_a_killed_run_goes_on_with_the_prompts_it_would_have_taken(prism, trained, tmp_path):
    words = [word.replace("~", " ") for word in LINE.replace("TRAINED", str(trained)).split(" ")]
    whole = prism(*words, "--output", "whole", cwd=tmp_path)
    assert whole.code == 0, whole.stderr
    kill = ("transformers.trainer:Trainer.training_step", 7)
    assert prism(*words, "--output", "killed", cwd=tmp_path, kill=kill).code == -signal.SIGKILL
    done = prism(*words, "--output", "killed", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "checkpoint-2" in done.stdout
    lines, positions, weights = [], [], []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        of_steps = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        timed = ("seconds", "step_time", "num_tokens")
        lines.append([{k: v for k, v in line.items() if k not in timed} for line in of_steps])
        positions.append(json.loads((folder / "checkpoints/checkpoint-4/prompts.json").read_text())["seen"])
        weights.append(load_file(folder / "model/model.safetensors"))
    assert lines[0] == lines[1]
    assert positions[0] == positions[1] > 12, "into the second epoch"
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_two_processes_train_alike_on_their_own_shares(tmp_path):
    script = Path(__file__).with_name("sampling_in_two_processes.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    done = subprocess.run(
        [*launcher, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=script.parents[2],
        env={**os.environ, "PYTHONPATH": str(script.parents[2])},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    zero, one = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    # Round 1: process 0 keeps its first two groups, process 1 none. Round 2: process 1 keeps one; process 0 is full.
    assert zero["kept"] == one["kept"] == 3
    assert zero["rounds"] == one["rounds"] == 2
    assert zero["seen"] == one["seen"] == 16
    assert zero["real"] == 2 * GROUP
    assert one["real"] == GROUP
    assert zero["tokens"] == one["tokens"] == zero["own_tokens"] + one["own_tokens"]
    assert zero["weights"] == one["weights"], "after one update the processes hold the same weights"
    assert zero["moved"]
