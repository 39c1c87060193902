"""Reinforcement with verifiable rewards on TRL's GRPO trainer; GRPO, DAPO and GSPO are presets of its options."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from prism_cli.progress import say
from prism_cli.trainers.dynamic_sampling import DynamicSampling, NoUpdate
from prism_cli.trainers.prompts import EpochSampler, PromptCursor
from prism_cli.trainers.rollout import RolloutTrainer
from prism_cli.trainers.verified_reward import VerifiedReward

# What makes each algorithm, beside its clip ranges.
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "dapo", "importance_sampling_level": "token"},
    "dapo": {"loss_type": "dapo", "importance_sampling_level": "token"},
    # GSPO's loss is the mean over sequences of a sequence-level ratio: TRL needs both settings.
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}


class Resampling(NamedTuple):
    """How dynamic sampling fills a batch; see `DynamicSampling`."""

    oversample: int
    max_rounds: int


ACCURACY = "accuracy"
POSITION = "prompts.json"


class GRPOTrainer(RolloutTrainer):
    """RolloutTrainer whose rewards are rules on parsed responses.

    Args:
        policy: The policy to train.
        rewards: The rules.
        weights: Weight of each rule in the reward, by name.
        arguments: Keyword arguments of GRPOConfig.
        train: Rows with `prompt`, `images` and what the rules read.
        held_out: Rows of the same shape, or None.
        callbacks: Watchers.
        lora: A peft config, or None.
        resampling: Dynamic sampling by the rule `accuracy`, or None to train on every group.
        judged: A model may leave responses unscored, so their share is logged; without it, from the first one on.
    """

    def __init__(
        self,
        policy,
        rewards: VerifiedReward,
        weights: dict[str, float],
        arguments,
        *args,
        resampling: Resampling | None = None,
        judged: bool = False,
        **kwargs,
    ):
        self.rewards = rewards
        arguments = {**arguments, "reward_weights": [weights[name] for name in rewards.rules]}
        super().__init__(policy, rewards.functions(), arguments, *args, **kwargs)
        self.sampling = None if resampling is None else self._sampling(resampling)
        self._some_unscored = judged
        self._told_small = False

    def judge(self, rows, prompts, responses, completion_ids):
        """Applies the rules."""
        self.rewards.judge(responses, rows, [len(ids) for ids in completion_ids])

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        group = self.num_generations if self._training else self.num_generations_eval
        self._scored = rewards
        unscored = rewards.isnan().any(1).float().mean().item()
        self._some_unscored |= unscored > 0
        if self._some_unscored:
            self._metrics[self._mode]["rewards/unscored_fraction"].append(unscored)
        return fill_unscored(rewards, cast(int, group))

    def _generate_and_score_completions(self, inputs):
        if self.sampling is not None and self._training:
            return self._resampled(self.sampling)
        return self._generated(inputs)

    def _generated(self, inputs: list[dict]) -> dict[str, Any]:
        """TRL's, with means of rewards over what was scored."""
        output = super()._generate_and_score_completions(inputs)
        for name, values in zip(self.rewards.rules, self._scored.T, strict=True):
            self._metrics[self._mode][f"rewards/{name}/mean"][-1] = values.nanmean().item()
        return output

    @property
    def _training(self) -> bool:
        return cast(torch.nn.Module, self.model).training

    @property
    def _mode(self) -> str:
        return "train" if self._training else "eval"

    def _compute_loss(self, model, inputs):
        """TRL's; a pass in which no token counts has measured nothing, though TRL logs that as 0."""
        loss = super()._compute_loss(model, inputs)
        if not cast(Tensor, self.accelerator.gather(inputs["completion_mask"].sum())).sum():
            for name, values in self._metrics[self._mode].items():
                if name in ("entropy", "kl") or name.startswith("clip_ratio/"):
                    values[-1] = math.nan
        return loss

    # Dynamic sampling -------------------------------------------------------------------------------------------------

    def _sampling(self, how: Resampling) -> DynamicSampling:
        sampler = cast(EpochSampler, self._get_train_sampler())
        sampling = DynamicSampling(
            *how,
            prompts=sampler.batch_size,
            group=cast(int, self.num_generations),
            cursor=PromptCursor(sampler.num_samples, sampler.order),
            pad_id=cast(Any, self._tokenizer).pad_token_id,
            process=(self.accelerator.process_index, self.accelerator.num_processes),
        )
        self.add_callback(NoUpdate(sampling))
        asked, able = (how.max_rounds, how.oversample * sampling.prompts), (sampling.max_rounds, sampling.a_round)
        if able != asked and self.is_world_process_zero():
            few = f"dynamic sampling: {sampler.num_samples} rows are enough for {_rounds(able[0])} of {able[1]} prompts"
            say(f"{few} a step, not {_rounds(asked[0])} of {asked[1]}")
        return sampling

    def get_train_dataloader(self):
        """TRL's; with dynamic sampling it only counts steps: the prompts are the cursor's, so no picture is read."""
        rows = self.train_dataset
        if self.sampling is not None:
            self.train_dataset = cast(Any, rows).select_columns(["id"])
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = rows

    def _resampled(self, sampling: DynamicSampling) -> dict[str, Any]:
        """A batch of groups whose accuracies differ, in TRL's form."""
        batch = sampling.fill(self._roll_out)
        tokens = batch["completion_mask"]
        tokens = tokens * batch["tool_mask"] if "tool_mask" in batch else tokens
        # The loss is a mean over these tokens: over those of the kept groups alone.
        batch["num_items_in_batch"] = cast(Tensor, self.accelerator.gather(tokens.sum())).sum()
        if not sampling.tally.kept and self.is_deepspeed_enabled:
            # DeepSpeed steps behind the last backward, out of `NoUpdate`'s reach; the schedule sets the rate anew.
            for group in cast(torch.optim.Optimizer, self.optimizer).param_groups:
                group["lr"] = 0.0
        looked_at = batch.pop("looked_at")
        self._keep_trained([one for one, mask in zip(looked_at, batch["completion_mask"], strict=True) if mask.any()])
        for name, value in sampling.tally.metrics().items():
            self._metrics["train"][name].append(value)
        # TRL's `epoch` counts steps; this is how often the rows have been passed.
        self._metrics["train"]["sampling/epoch"].append(sampling.cursor.seen / sampling.cursor.count)
        self._tell(sampling)
        return batch

    def _roll_out(self, indices: list[int]) -> tuple[dict[str, Any], Tensor]:
        """TRL's output of these rows' rollouts, and the accuracies of all processes' rollouts."""
        self._looked_at = []
        rows = [cast(Any, self.train_dataset)[i] for i in indices]
        output = self._generated([row for row in rows for _ in range(cast(int, self.num_generations))])
        return {**output, "looked_at": self._looked_at}, self._scored[:, list(self.rewards.rules).index(ACCURACY)]

    def keep_rollouts(self, rows, completions, rewards, completion_ids):
        """The rollout log's; with dynamic sampling it is given what is trained on, once that is known."""
        if self.sampling is None or not self._training:
            super().keep_rollouts(rows, completions, rewards, completion_ids)
        else:
            self._looked_at = list(zip(rows, completions, rewards, completion_ids, strict=True))

    def _keep_trained(self, rollouts: Sequence[tuple]) -> None:
        if rollouts:
            rows, completions, rewards, completion_ids = zip(*rollouts, strict=True)
            super().keep_rollouts(list(rows), list(completions), torch.stack(rewards), list(completion_ids))

    def _tell(self, sampling: DynamicSampling) -> None:
        kept, step = sampling.tally.kept, self.state.global_step + 1
        if kept == sampling.prompts or not self.is_world_process_zero():
            return
        tally, unscored = sampling.tally, sampling.tally.unscored
        looked = f"step {step}: {kept or 'none'} of {tally.seen} prompts had rollouts both right and wrong in "
        said = looked + _rounds(tally.rounds) + (f" ({unscored} could not be judged); " if unscored else "; ")
        if not kept:
            say(said + "no update is made")
        elif not self._told_small:
            self._told_small = True
            more = f"the step trains on these instead of {sampling.prompts}; later ones show in sampling/kept"
            say(said + more)

    def save_position(self, folder: Path) -> None:
        """Writes where in the prompts dynamic sampling is into a checkpoint, so that the rest follow as they would."""
        if self.sampling is not None and self.is_world_process_zero():
            (folder / POSITION).write_text(json.dumps({"seen": self.sampling.cursor.seen}), encoding="utf-8")

    def load_position(self, folder: Path) -> None:
        """Continues from a checkpoint."""
        if self.sampling is not None:
            self.sampling.cursor.seen = json.loads((folder / POSITION).read_text(encoding="utf-8"))["seen"]


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count > 1 else ''}"


def fill_unscored(rewards: Tensor, group: int) -> Tensor:
    """Rewards with what is unscored at its group's mean, so that it has no advantage; 0 where a whole group is.

    Args:
        rewards: (N, F), NaN where unscored; rollouts of a prompt stand side by side.
        group: Rollouts a prompt.
    """
    grouped = rewards.view(-1, group, rewards.shape[1])
    means = grouped.nanmean(1, keepdim=True).nan_to_num(0.0)
    return torch.where(grouped.isnan(), means, grouped).view_as(rewards)
