"""Reinforcement with verifiable rewards on TRL's GRPO trainer; GRPO, DAPO and GSPO are presets of its options."""

from collections.abc import Callable, Sequence
from typing import Any

from prism_cli.responses import Response
from prism_cli.trainers.rollout import RewardFunction, RolloutTrainer

# What makes each algorithm, beside its clip ranges.
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "dapo", "importance_sampling_level": "token"},
    "dapo": {"loss_type": "dapo", "importance_sampling_level": "token"},
    # GSPO's loss is the mean over sequences of a sequence-level ratio: TRL needs both settings.
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}


class VerifiedReward:
    """Rewards of one generation batch, computed once from the parsed responses and served to TRL by name.

    Args:
        rules: Name → function of (response, row, completion length in tokens), each in its own unit.
    """

    def __init__(self, rules: dict[str, Callable[[Response, dict, int], float]]):
        self.rules = rules
        self.values: dict[str, list[float]] = {name: [] for name in rules}

    def judge(self, responses: Sequence[Response], rows: Sequence[dict], lengths: Sequence[int]) -> None:
        """Computes every rule on every response."""
        triples = list(zip(responses, rows, lengths, strict=True))
        self.values = {name: [rule(*triple) for triple in triples] for name, rule in self.rules.items()}

    def functions(self) -> list[RewardFunction]:
        """One TRL reward callable a rule; its name is the rule's."""
        return [self._serve(name) for name in self.rules]

    def _serve(self, name: str) -> RewardFunction:
        def reward(**columns: Any) -> list[float]:
            return self.values[name]

        reward.__name__ = name
        return reward


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
    """

    def __init__(self, policy, rewards: VerifiedReward, weights: dict[str, float], arguments, *args, **kwargs):
        self.rewards = rewards
        arguments = {**arguments, "reward_weights": [weights[name] for name in rewards.rules]}
        super().__init__(policy, rewards.functions(), arguments, *args, **kwargs)

    def judge(self, rows, prompts, responses, completion_ids):
        """Applies the rules."""
        self.rewards.judge(responses, rows, [len(ids) for ids in completion_ids])
