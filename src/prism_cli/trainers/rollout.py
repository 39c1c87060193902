"""What align and RL share on TRL's GRPOTrainer: rollouts read by the declared grammar, no placeholder token."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from prism_cli.models import Policy, placeholder_ids
from prism_cli.responses import Response
from prism_cli.trainers.arguments import trl_config
from prism_cli.trainers.packed_logps import PackedLogps, whole_groups
from prism_cli.trainers.prompts import EpochSampler
from prism_cli.trainers.rollout_log import RolloutLog
from prism_cli.trainers.vllm_rollouts import VLLMRollouts, end, mend, never_says, suppressing

RewardFunction = Callable[..., Any]


class RolloutTrainer(GRPOTrainer):
    """GRPOTrainer whose rollouts are read as responses of a grammar.

    Args:
        policy: Model, processor and grammar.
        reward_funcs: TRL reward callables.
        arguments: Keyword arguments of GRPOConfig.
        train: Rows with `prompt` and `images`.
        held_out: Rows of the same shape for the evaluation, or None.
        callbacks: Watchers; a `RolloutLog` among them is given rollouts to keep.
        lora: A peft config, or None to train all weights.
        vllm: How vLLM makes the rollouts, or None for transformers.
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
        vllm: VLLMRollouts | None = None,
    ):
        self.grammar = policy.grammar
        placeholders = placeholder_ids(policy.processor)
        unsaid = {"suppress_tokens": placeholders} if vllm is None else suppressing(policy, placeholders)
        generation = {**arguments.get("generation_kwargs", {}), **unsaid}
        arguments = {**({} if vllm is None else vllm.arguments), **arguments, "generation_kwargs": generation}
        args = trl_config(GRPOConfig, arguments)
        with nullcontext() if vllm is None else vllm.started_for(policy.processor, args.bf16, args.seed):
            super().__init__(
                model=policy.model,
                reward_funcs=list(reward_funcs),
                args=args,
                train_dataset=train,
                eval_dataset=held_out,
                processing_class=policy.processor,
                callbacks=list(callbacks),
                peft_config=lora,
            )
        if vllm is not None:
            mend(self.vllm_generation, policy.processor)
            for model in filter(None, (self.model, self.ref_model)):
                never_says(model, placeholders)
        self.packed_logps = PackedLogps(self.accelerator)
        self.rollout_log = next((one for one in callbacks if isinstance(one, RolloutLog)), None)

    def train(self, *args, **kwargs):
        """TRL's; a vLLM of its own ends with it."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.use_vllm:
                end(self.vllm_generation)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        packed = self.packed_logps(model, *args, **kwargs)
        return packed or super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = whole_groups(self._buffered_inputs)
        return self._buffered_inputs[self._step % len(self._buffered_inputs)]

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
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._log_by_source(inputs, rewards, responses)
        start = self.accelerator.process_index * len(inputs)
        self.keep_rollouts(inputs, completions, rewards[start : start + len(inputs)], completion_ids_list)
        return rewards

    def keep_rollouts(
        self, rows: list[dict], completions: list, rewards: torch.Tensor, completion_ids: list[list[int]]
    ) -> None:
        """Gives the log, where it is due, what is trained on: this process's (N,) rows with their (N, F) rewards."""
        log, step = self.rollout_log, self.state.global_step + 1
        if log is None or not cast(torch.nn.Module, self.model).training or not self.is_world_process_zero():
            return
        if log.is_due(step):
            texts = list(map(text_of, completions))
            problems = [self.grammar.parse(text).problem for text in texts]
            named = dict(zip(self.reward_func_names, rewards.T.tolist(), strict=True))
            log.keep(step, rows, texts, problems, named, list(map(len, completion_ids)))

    def _log_by_source(self, rows: list[dict], rewards: torch.Tensor, responses: list[Response]) -> None:
        """Mean reward and share of malformed responses of each source of a mixture; `rewards` are of all processes."""
        if not rows[0]["source"]:
            return
        pairs = [(row["source"], not response.well_formed) for row, response in zip(rows, responses, strict=True)]
        # All processes log all names: TRL gathers what is logged.
        everywhere: list[tuple[str, bool]] = gather_object(pairs)
        totals = (rewards * self.reward_weights.to(rewards)).nansum(1).tolist()
        for name in sorted({source for source, _ in everywhere}):
            mine = [i for i, (source, _) in enumerate(everywhere) if source == name]
            self._log_metric(f"sources/{name}/reward", sum(totals[i] for i in mine) / len(mine))
            self._log_metric(f"sources/{name}/malformed_fraction", sum(everywhere[i][1] for i in mine) / len(mine))

    def judge(
        self, rows: list[dict], prompts: list, responses: list[Response], completion_ids: list[list[int]]
    ) -> None:
        """Called with each generation batch of this process before rewards are computed; children score here."""


def text_of(completion: str | list[dict[str, Any]]) -> str:
    """The text of a TRL completion, conversational or plain."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
