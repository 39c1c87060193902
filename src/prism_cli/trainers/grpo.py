"""Reinforcement with verifiable rewards on TRL's GRPO trainer; GRPO and GSPO are settings of its options."""

import math
from typing import Any, cast

import torch
from torch import Tensor

from prism_cli.models import Policy
from prism_cli.trainers.rollout import Batch, RolloutTrainer, Rows
from prism_cli.trainers.setup import TrainerSetup
from prism_cli.trainers.verified_reward import VerifiedReward


class GRPOTrainer(RolloutTrainer):
    """RolloutTrainer whose rewards are rules on parsed responses.

    Args:
        policy: The policy to train.
        rewards: The rules with their weights. The share of unscored responses is logged from the first one on, from
            the start where a model takes part.
        setup: Arguments of GRPOConfig, rows with `prompt`, `images` and what the rules read, and what watches.
    """

    def __init__(self, policy: Policy, rewards: VerifiedReward, setup: TrainerSetup):
        self.rewards = rewards
        weights = [rewards.weights[name] for name in rewards.rules]
        arguments = {**setup.arguments, "reward_weights": weights}
        super().__init__(policy, rewards.functions(), setup._replace(arguments=arguments))
        self._log_unscored = rewards.by_model

    def score(self, batch: Batch) -> None:
        """Applies the rules."""
        self.rewards.score(batch.responses, batch.rows, [len(ids) for ids in batch.completion_ids])

    def _calculate_rewards(
        self, inputs: Rows, prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        group = self.num_generations if self.training else self.num_generations_eval
        self._scored = rewards
        unscored = rewards.isnan().any(1).float().mean().item()
        self._log_unscored |= unscored > 0
        if self._log_unscored:
            self._metrics[self._mode]["rewards/unscored_fraction"].append(unscored)
        return fill_unscored(rewards, cast(int, group))

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        """TRL's, with means of rewards over what was scored."""
        output = super()._generate_and_score_completions(inputs)
        for name, values in zip(self.rewards.rules, self._scored.T, strict=True):
            self._metrics[self._mode][f"rewards/{name}/mean"][-1] = values.nanmean().item()
        return output

    @property
    def _mode(self) -> str:
        return "train" if self.training else "eval"

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's; a pass in which no token counts has measured nothing, though TRL logs that as 0."""
        loss = super()._compute_loss(model, inputs)
        if not cast(Tensor, self.accelerator.gather(inputs["completion_mask"].sum())).sum():
            for name, values in self._metrics[self._mode].items():
                if name in ("entropy", "kl") or name.startswith("clip_ratio/"):
                    values[-1] = math.nan
        return loss


def fill_unscored(rewards: Tensor, group: int) -> Tensor:
    """Rewards with what is unscored at its group's mean, so that it has no advantage; 0 where a full group is.

    Args:
        rewards: (N, F), NaN where unscored; rollouts of a prompt stand side by side.
        group: Rollouts a prompt.

    Returns:
        (N, F), finite.
    """
    grouped = rewards.view(-1, group, rewards.shape[1])
    means = grouped.nanmean(1, keepdim=True).nan_to_num(0.0)
    return torch.where(grouped.isnan(), means, grouped).view_as(rewards)
