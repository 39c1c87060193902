"""What align and RL share on TRL's GRPOTrainer: rollouts read by the declared grammar, no placeholder token."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from prism_cli.models import Policy, placeholder_ids
from prism_cli.responses import Response
from prism_cli.trainers.arguments import trl_config

RewardFunction = Callable[..., Any]


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order that follows from the epoch alone.

    TRL's draws each epoch's order from one generator whose state no checkpoint keeps, so a run that continues in a
    later epoch would see the first one's order again.
    """

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.generator.manual_seed((self.seed or 0) + epoch)


class RolloutTrainer(GRPOTrainer):
    """GRPOTrainer whose rollouts are read as responses of a grammar.

    Args:
        policy: Model, processor and grammar.
        reward_funcs: TRL reward callables.
        arguments: Keyword arguments of GRPOConfig.
        train: Rows with `prompt` and `images`.
        held_out: Rows of the same shape for the evaluation, or None.
        callbacks: Watchers.
        lora: A peft config, or None to train all weights.
    """

    def __init__(
        self,
        policy: Policy,
        reward_funcs: Sequence[RewardFunction],
        arguments: dict[str, Any],
        train: Dataset,
        held_out: Dataset | None,
        callbacks: Sequence[TrainerCallback],
        lora: Any = None,
    ):
        self.grammar = policy.grammar
        generation = {**arguments.get("generation_kwargs", {}), "suppress_tokens": placeholder_ids(policy.processor)}
        super().__init__(
            model=policy.model,
            reward_funcs=list(reward_funcs),
            args=trl_config(GRPOConfig, {**arguments, "generation_kwargs": generation}),
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=policy.processor,
            callbacks=list(callbacks),
            peft_config=lora,
        )

    def _get_train_sampler(self, dataset=None):
        sampler = cast(RepeatSampler, super()._get_train_sampler(dataset))
        return EpochSampler(
            sampler.data_source,
            sampler.mini_repeat_count,
            sampler.batch_size,
            sampler.repeat_count,
            sampler.shuffle,
            sampler.seed,
        )

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        responses = [self.grammar.parse(text_of(completion)) for completion in completions]
        malformed = sum(not response.well_formed for response in responses)
        self._log_metric("responses/malformed_fraction", malformed / len(responses))
        self.judge(inputs, prompts, responses, completion_ids_list)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def judge(
        self, rows: list[dict], prompts: list, responses: list[Response], completion_ids: list[list[int]]
    ) -> None:
        """Called with each generation batch of this process before rewards are computed; children score here."""


def text_of(completion: str | list[dict[str, Any]]) -> str:
    """The text of a TRL completion, conversational or plain."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
