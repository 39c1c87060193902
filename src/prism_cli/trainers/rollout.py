"""Rollouts on TRL's GRPOTrainer, for align and RL: read by the declared grammar, without placeholder tokens."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from prism_cli import phases, processes
from prism_cli.models import Policy, placeholder_ids
from prism_cli.responses import Response
from prism_cli.trainers.arguments import trl_config
from prism_cli.trainers.gathers import pictures_left_out
from prism_cli.trainers.in_step import RolloutsInStep
from prism_cli.trainers.packed_logps import PackedLogps, prompts_together
from prism_cli.trainers.prompts import EpochSampler
from prism_cli.trainers.rollout_log import Rollouts
from prism_cli.trainers.setup import TrainerSetup
from prism_cli.trainers.vllm_rollouts import end, mend, never_says, suppressing

RewardFunction = Callable[..., Any]
Rows = list[dict[str, Any]]


class Batch(NamedTuple):
    """One process's rollouts of a generation batch, those of a prompt side by side.

    Attributes:
        rows: (N,) rows of the data.
        prompts: (N,) conversations.
        responses: (N,) parsed.
        completion_ids: (N,) token ids.
    """

    rows: Rows
    prompts: list[Any]
    responses: list[Response]
    completion_ids: list[list[int]]


class RolloutTrainer(RolloutsInStep, GRPOTrainer):
    """GRPOTrainer whose rollouts are read as responses of a grammar.

    A child scores them in `score`, and keeps what TRL does not in `save_extra` and `load_extra`.

    Args:
        policy: Model, processor and grammar.
        reward_funcs: TRL reward callables.
        setup: Arguments of GRPOConfig, rows with `prompt` and `images`, and what watches.
    """

    def __init__(self, policy: Policy, reward_funcs: Sequence[RewardFunction], setup: TrainerSetup):
        self.grammar = policy.grammar
        self.rollout_log = setup.rollout_log
        placeholders, vllm = placeholder_ids(policy.processor), setup.vllm
        unsaid = {"suppress_tokens": placeholders} if vllm is None else suppressing(policy, placeholders)
        generation = {**setup.arguments.get("generation_kwargs", {}), **unsaid}
        arguments = {**({} if vllm is None else vllm.arguments), **setup.arguments, "generation_kwargs": generation}
        arguments["log_multimodal"] = False  # the rollout log keeps pictures, of some rollouts
        args = trl_config(GRPOConfig, arguments)
        with nullcontext() if vllm is None else vllm.started_for(policy.processor, args.bf16, args.seed):
            super().__init__(
                model=policy.model,
                reward_funcs=list(reward_funcs),
                args=args,
                train_dataset=cast(Dataset, setup.train),
                eval_dataset=setup.held_out,
                processing_class=policy.processor,
                callbacks=[*setup.callbacks, *filter(None, [setup.rollout_log])],
                peft_config=setup.lora,
            )
        if vllm is not None:
            mend(self.vllm_generation, policy.processor)
            for model in filter(None, (self.model, self.ref_model)):
                never_says(model, placeholders)
        self.packed_logps = PackedLogps(self.accelerator)

    # For children -----------------------------------------------------------------------------------------------------

    def score(self, batch: Batch) -> None:
        """Scores a generation batch of this process, before TRL calls the reward functions."""

    def shown_scores(self, rewards: Tensor) -> Mapping[str, Sequence[float]]:
        """Scores of each rollout in the rollout log, by name.

        Args:
            rewards: (N, F) of TRL's reward functions, NaN where unscored.
        """
        return dict(zip(self.reward_func_names, rewards.T.tolist(), strict=True))

    def teacher_texts(self) -> Mapping[str, str | None]:
        """The teacher's texts for the rollout log, by row id."""
        return {}

    def save_extra(self, folder: Path) -> None:
        """Writes what TRL doesn't keep into a checkpoint; all processes call it."""

    def load_extra(self, folder: Path) -> None:
        """Continues from a checkpoint that `save_extra` wrote into."""

    @property
    def training(self) -> bool:
        """Whether a training batch is under way, not a held-out one."""
        return cast(torch.nn.Module, self.model).training

    # TRL's methods ----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's, with the extra state of the checkpoint; a vLLM of its own ends with it."""
        if isinstance(resume_from_checkpoint, str):
            self.load_extra(Path(resume_from_checkpoint))
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            if self.use_vllm:
                end(self.vllm_generation)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.save_extra(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

    def _generate(self, prompts: list[Any]) -> Any:
        with phases.within(phases.GENERATION):
            return super()._generate(prompts)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        packed = self.packed_logps(model, *args, **kwargs)
        return packed or super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        with pictures_left_out():
            output = super()._generate_and_score_completions(inputs)
        # With vLLM TRL takes another pass of the same weights for the policy before the update, for the importance
        # weights, which stand. Where each rollout is used once the ratio of the two is 1: without that pass's
        # log-probabilities TRL takes it so, else their rounding passes GSPO's clip of 3e-4.
        args = cast(GRPOConfig, self.args)
        if args.gradient_accumulation_steps % (cast(int, args.steps_per_generation) * self.num_iterations) == 0:
            output.pop("old_per_token_logps", None)
        return output

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = prompts_together(self._buffered_inputs)
        return self._buffered_inputs[self._step % len(self._buffered_inputs)]

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        sampler = cast(RepeatSampler, super()._get_train_sampler(dataset))
        return EpochSampler(
            sampler.data_source,
            sampler.mini_repeat_count,
            sampler.batch_size,
            sampler.repeat_count,
            sampler.shuffle,
            sampler.seed,
        )

    def _calculate_rewards(
        self, inputs: Rows, prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> Tensor:
        responses = [self.grammar.parse(text_of(completion)) for completion in completions]
        malformed = sum(not response.well_formed for response in responses)
        self._log_metric("responses/malformed_fraction", malformed / len(responses))
        self.score(Batch(inputs, prompts, responses, completion_ids_list))
        processes.barrier()  # what is scored takes each process its own time, and TRL gathers it
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._log_by_source(inputs, rewards, responses)
        start = self.accelerator.process_index * len(inputs)
        self.keep_rollouts(inputs, completions, rewards[start : start + len(inputs)], completion_ids_list)
        return rewards

    def keep_rollouts(
        self, rows: Rows, completions: list[Any], rewards: Tensor, completion_ids: list[list[int]]
    ) -> None:
        """Gives the log, where it is due, what is trained on.

        Args:
            rows: (N,) of this process.
            completions: (N,) TRL's.
            rewards: (N, F), NaN where unscored.
            completion_ids: (N,) token ids.
        """
        log, step = self.rollout_log, self.state.global_step + 1
        if log is None or not self.training or not self.is_world_process_zero() or not log.is_due(step):
            return
        texts = list(map(text_of, completions))
        problems = [self.grammar.parse(text).problem for text in texts]
        lengths = list(map(len, completion_ids))
        log.keep(step, Rollouts(rows, texts, problems, self.shown_scores(rewards), lengths, self.teacher_texts()))

    def _log_by_source(self, rows: Rows, rewards: Tensor, responses: list[Response]) -> None:
        """Mean reward and share of malformed responses of each source of a mixture; `rewards` are of all processes."""
        if not rows[0]["source"]:
            return
        pairs = [(row["source"], not response.well_formed) for row, response in zip(rows, responses, strict=True)]
        # All processes log all names: TRL gathers what is logged.
        everywhere: list[tuple[str, bool]] = gather_object(pairs)
        totals = (rewards * self.reward_weights.to(rewards)).nansum(1).tolist()
        for name in sorted({source for source, _ in everywhere}):
            places = [i for i, (source, _) in enumerate(everywhere) if source == name]
            self._log_metric(f"sources/{name}/reward", sum(totals[i] for i in places) / len(places))
            malformed = sum(everywhere[i][1] for i in places)
            self._log_metric(f"sources/{name}/malformed_fraction", malformed / len(places))


def text_of(completion: str | list[dict[str, Any]]) -> str:
    """The text of a TRL completion, conversational or plain."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
