"""Black-box on-policy distillation: the policy's rollouts are pulled to a teacher's texts by a discriminator.

Each step: roll out, take the teacher's answer, split both into parts, score and train the discriminator in one pass,
and give every token of a rollout its advantage (arXiv 2604.28123). The teacher is asked steps before that.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from accelerate.utils import gather
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig

from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.reader import PartReader
from prism_cli.models import Policy
from prism_cli.responses import Grammar, Response
from prism_cli.rewards.advantages import align_advantages
from prism_cli.trainers.prompts import EpochSampler, TeachableSampler
from prism_cli.trainers.rollout import RolloutTrainer
from prism_cli.trainers.vllm_rollouts import VLLMRollouts
from prism_cli.trainers.watch import WatchedLearner

FAILED_PROMPTS = "failed_prompts.json"


class AdvantageRule(NamedTuple):
    """How scores become advantages; see `align_advantages`."""

    rule: Literal["per_part", "combined"]
    malformed: Literal["floor", "apart"]
    malformed_penalty: float
    std_floor: float
    weights: Mapping[str, float] | None = None


class TeacherCalls(NamedTuple):
    """How a teacher is asked about rows (dicts with an `id`).

    Attributes:
        prefetch: Starts asking, and returns at once.
        teachable: Whether it has a usable answer to each; waits for them.
        answers: Its texts, in order, None where it failed; waits for them.
    """

    prefetch: Callable[[list[dict]], None]
    teachable: Callable[[list[dict]], list[bool]]
    answers: Callable[[list[dict]], Sequence[str | None]]


class OnPolicyDistillTrainer(RolloutTrainer):
    """Plays the game of policy and discriminator on TRL's GRPO trainer.

    Args:
        policy: The policy to align.
        learner: The warmed-up discriminator with its optimiser.
        teacher: How to ask it.
        advantage: From scores to advantages.
        arguments: Keyword arguments of GRPOConfig.
        train: Rows with `prompt` and `images`.
        held_out: Rows of the same shape, or None.
        callbacks: Watchers.
        lora: A peft config, or None.
        taught: The parts the teacher writes, where they are not all of the policy's.
        vllm: How vLLM makes the rollouts, or None for transformers.
    """

    def __init__(
        self,
        policy: Policy,
        learner: DiscriminatorLearner | WatchedLearner,
        teacher: TeacherCalls,
        advantage: AdvantageRule,
        arguments: dict[str, Any],
        train: Dataset,
        held_out: Dataset | None,
        callbacks: Sequence[TrainerCallback],
        lora: Any = None,
        taught: Grammar | None = None,
        vllm: VLLMRollouts | None = None,
    ):
        super().__init__(policy, [self.discriminator], arguments, train, held_out, callbacks, lora, vllm)
        self.learner = learner
        self.teacher = teacher
        self.advantage = advantage
        self.reader = PartReader(policy.processor, policy.grammar, taught)
        self.part_weights = self.reader.weights(advantage.weights)
        self.failed_prompts: set[str] = set()
        self._waited = 0.0

    def save_failed_prompts(self, folder: Path) -> None:
        """Writes which prompts the teacher failed on into a checkpoint, so that the rest follow as they would have."""
        if self.is_world_process_zero():
            (folder / FAILED_PROMPTS).write_text(json.dumps(sorted(self.failed_prompts)), encoding="utf-8")

    def load_failed_prompts(self, folder: Path) -> None:
        """Continues from a checkpoint."""
        self.failed_prompts.update(json.loads((folder / FAILED_PROMPTS).read_text(encoding="utf-8")))

    def _get_train_sampler(self, dataset=None):
        sampler = cast(EpochSampler, super()._get_train_sampler(dataset))
        ids = list(cast(Dataset, sampler.data_source)["id"])
        return TeachableSampler(
            sampler, ids, self.teacher.prefetch, self._teachable, self._generation_window, self.failed_prompts
        )

    def _generation_window(self) -> tuple[int, int]:
        """The generation batch of the next step and the one past the last step's, counted from the start."""
        a_batch = self.num_iterations * cast(int, cast(GRPOConfig, self.args).steps_per_generation)
        done, all_steps = (
            steps * self.args.gradient_accumulation_steps for steps in (self.state.global_step, self.state.max_steps)
        )
        return done // a_batch, math.ceil(all_steps / a_batch)

    def _teachable(self, rows: list[dict]) -> list[bool]:
        with self._waiting():
            return self.teacher.teachable(rows)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Counts the time that training stands still for the teacher."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - started

    def discriminator(self, completions: list, **columns: Any) -> list[float]:
        """TRL's reward column, for the log only: r of the paper's Eq. 3, malformed rollouts at the smallest − 1."""
        scores = (self._scores.cpu() * self.part_weights).sum(1)
        valid = self._valid.cpu()
        floor = scores[valid].min() - 1 if valid.any() else torch.tensor(-1.0)
        return torch.where(valid, scores, floor).tolist()

    def evaluate(self, *args, **kwargs):
        """TRL's, on held-out rows that the teacher is asked about all at once."""
        self.teacher.prefetch([{"id": id} for id in cast(Dataset, self.eval_dataset)["id"]])
        return super().evaluate(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        # TRL normalises the summed reward; the method normalises each part and penalises malformed rollouts.
        output["advantages"] = self._local_advantages(len(inputs)).to(output["advantages"])
        return output

    def judge(self, rows, prompts, responses: list[Response], completion_ids):
        """Scores this process's rollouts against the teacher's answers; when training, updates the discriminator."""
        firsts = [i for i, first in enumerate(_firsts(rows)) if first]
        prompt_of = [sum(first <= i for first in firsts) - 1 for i in range(len(rows))]
        with self._waiting():
            answers = self.teacher.answers([rows[i] for i in firsts])
        taught = [self.reader.text(answer) for answer in answers]
        batch = Comparisons(
            prompts=[self.reader.prompt(prompts[i]) for i in firsts],
            teacher=taught,
            rollouts=[
                self.reader.tokens(ids) if response.well_formed else None
                for ids, response in zip(completion_ids, responses, strict=True)
            ],
            prompt_of=prompt_of,
        )
        judged = self.learner.score_and_update(batch) if self._training else self.learner.score(batch)
        for name, value in judged.metrics.items():
            self._log_metric(name, value)
        self._log_metric("teacher/malformed_fraction", sum(parts is None for parts in taught) / len(taught))
        self._log_metric("teacher/wait_seconds", self._waited)
        self._log_metric("teacher/failed_prompts", len(self.failed_prompts))
        self._waited = 0.0
        self._scores = judged.scores
        self._valid = torch.tensor([parts is not None for parts in batch.rollouts], device=judged.scores.device)

    def _local_advantages(self, count: int) -> torch.Tensor:
        """(N,) advantages of this process's rollouts; groups may lie across processes, so scores are gathered first."""
        advantages = align_advantages(
            cast(torch.Tensor, gather(self._scores)),
            cast(torch.Tensor, gather(self._valid)),
            self.part_weights.to(self._scores.device),
            cast(int, self.num_generations if self._training else self.num_generations_eval),
            rule=self.advantage.rule,
            malformed=self.advantage.malformed,
            std_floor=self.advantage.std_floor,
            malformed_penalty=self.advantage.malformed_penalty,
        )
        start = self.accelerator.process_index * count
        return advantages[start : start + count]

    @property
    def _training(self) -> bool:
        return cast(torch.nn.Module, self.model).training


def _firsts(rows: Sequence[dict]) -> list[bool]:
    """Which rows begin a run of the same prompt: rollouts of a prompt stand side by side."""
    return [i == 0 or row["id"] != rows[i - 1]["id"] for i, row in enumerate(rows)]
