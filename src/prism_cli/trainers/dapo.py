"""DAPO with dynamic sampling: our GRPO trainer on batches refilled until their groups can teach something."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prism_cli.models import Policy
from prism_cli.progress import say
from prism_cli.trainers.algorithms import Resampling
from prism_cli.trainers.dynamic_sampling import DynamicSampling, NoUpdate
from prism_cli.trainers.grpo import GRPOTrainer
from prism_cli.trainers.prompts import EpochSampler, PromptCursor
from prism_cli.trainers.rollout import Rows
from prism_cli.trainers.setup import TrainerSetup
from prism_cli.trainers.verified_reward import VerifiedReward

ACCURACY = "accuracy"
POSITION = "prompts.json"


class DAPOTrainer(GRPOTrainer):
    """GRPOTrainer that trains only on groups whose accuracies differ, and takes its prompts from a cursor.

    Args:
        policy: The policy to train.
        rewards: The rules; the one named `accuracy` decides.
        setup: As of GRPOTrainer.
        resampling: How much is rolled out to fill a batch.

    Raises:
        RecipeError: the processes can't have equal shares of a batch.
    """

    def __init__(self, policy: Policy, rewards: VerifiedReward, setup: TrainerSetup, resampling: Resampling):
        super().__init__(policy, rewards, setup)
        sampler = cast(EpochSampler, self._get_train_sampler())
        self.sampling = DynamicSampling(
            resampling,
            prompts=sampler.batch_size,
            group=cast(int, self.num_generations),
            cursor=PromptCursor(sampler.num_samples, sampler.order),
            pad_id=cast(Any, self._tokenizer).pad_token_id,
            process=(self.accelerator.process_index, self.accelerator.num_processes),
        )
        self.add_callback(NoUpdate(self.sampling))
        self._said_small = False
        self._say_fewer_rounds(resampling, sampler.num_samples)

    def _say_fewer_rounds(self, resampling: Resampling, rows: int) -> None:
        sampling = self.sampling
        wanted = resampling.max_rounds, resampling.oversample * sampling.prompts
        possible = sampling.max_rounds, sampling.a_round
        if possible != wanted:
            few = f"dynamic sampling: {rows} rows are enough for {_rounds(possible[0])} of {possible[1]} prompts"
            say(f"{few} a step, not {_rounds(wanted[0])} of {wanted[1]}")

    def save_extra(self, folder: Path) -> None:
        """Writes the cursor's position, so that the prompts to come follow as they would."""
        if self.is_world_process_zero():
            (folder / POSITION).write_text(json.dumps({"seen": self.sampling.cursor.seen}), encoding="utf-8")

    def load_extra(self, folder: Path) -> None:
        """Continues from a checkpoint's position."""
        self.sampling.cursor.seen = json.loads((folder / POSITION).read_text(encoding="utf-8"))["seen"]

    def get_train_dataloader(self) -> DataLoader:
        """TRL's, only to count steps: the prompts are the cursor's, so no picture is read here."""
        rows = self.train_dataset
        self.train_dataset = cast(Any, rows).select_columns(["id"])
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = rows

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        """A batch of groups whose accuracies differ, in TRL's form; a held-out batch as it is."""
        if not self.training:
            return super()._generate_and_score_completions(inputs)
        sampling = self.sampling
        batch = sampling.fill(self._roll_out)
        tokens = batch["completion_mask"]
        tokens = tokens * batch["tool_mask"] if "tool_mask" in batch else tokens
        # The loss is a mean over these tokens: over those of the kept groups alone.
        batch["num_items_in_batch"] = cast(Tensor, self.accelerator.gather(tokens.sum())).sum()
        if not sampling.tally.kept and self.is_deepspeed_enabled:
            # DeepSpeed steps behind the last backward, out of `NoUpdate`'s reach; the schedule sets the rate anew.
            for group in cast(torch.optim.Optimizer, self.optimizer).param_groups:
                group["lr"] = 0.0
        rollouts = batch.pop("rollouts")
        self._keep_trained([one for one, mask in zip(rollouts, batch["completion_mask"], strict=True) if mask.any()])
        for name, value in sampling.tally.metrics().items():
            self._metrics["train"][name].append(value)
        # TRL's `epoch` counts steps; this is how often the rows have been passed.
        self._metrics["train"]["sampling/epoch"].append(sampling.cursor.seen / sampling.cursor.count)
        self._say_few_kept()
        return batch

    def _roll_out(self, indices: list[int]) -> tuple[dict[str, Any], Tensor]:
        """TRL's output of these rows' rollouts, and the accuracies of all processes' rollouts."""
        self._rollouts: list[tuple] = []
        rows = [cast(Any, self.train_dataset)[i] for i in indices]
        output = super()._generate_and_score_completions(
            [row for row in rows for _ in range(cast(int, self.num_generations))]
        )
        return {**output, "rollouts": self._rollouts}, self._scored[:, list(self.rewards.rules).index(ACCURACY)]

    def keep_rollouts(
        self, rows: Rows, completions: list[Any], rewards: Tensor, completion_ids: list[list[int]]
    ) -> None:
        """Holds a round's rollouts back: the log is given what is trained on, once that is known."""
        if self.training:
            self._rollouts = list(zip(rows, completions, rewards, completion_ids, strict=True))

    def _keep_trained(self, rollouts: Sequence[tuple]) -> None:
        if rollouts:
            rows, completions, rewards, completion_ids = zip(*rollouts, strict=True)
            super().keep_rollouts(list(rows), list(completions), torch.stack(rewards), list(completion_ids))

    def _say_few_kept(self) -> None:
        """Says that a step trains on fewer prompts: each time that none is left, else once."""
        tally, prompts = self.sampling.tally, self.sampling.prompts
        if tally.kept == prompts:
            return
        step, unscored = self.state.global_step + 1, tally.unscored
        start = f"step {step}: {tally.kept or 'none'} of {tally.seen} prompts had rollouts both right and wrong in "
        start += _rounds(tally.rounds) + (f" ({unscored} had no accuracy); " if unscored else "; ")
        if not tally.kept:
            say(start + "no update is made")
        elif not self._said_small:
            self._said_small = True
            say(f"{start}the step trains on these instead of {prompts}; later ones show in sampling/kept")


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count > 1 else ''}"
