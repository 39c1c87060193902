"""Black-box on-policy distillation: a discriminator pulls the policy's rollouts to a teacher's texts.

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
from torch import Tensor
from torch.utils.data import Sampler
from trl.trainer.grpo_config import GRPOConfig

from prism_cli import phases
from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.reader import PartReader
from prism_cli.models import Policy
from prism_cli.responses import Grammar
from prism_cli.rewards.advantages import align_advantages
from prism_cli.runs.references import DISCRIMINATOR
from prism_cli.trainers.prompts import EpochSampler, TeachableSampler
from prism_cli.trainers.rollout import Batch, RolloutTrainer, Rows
from prism_cli.trainers.setup import TrainerSetup
from prism_cli.trainers.watch import WatchedLearner

FAILED_PROMPTS = "failed_prompts.json"


class AdvantageRule(NamedTuple):
    """The rule by which scores become advantages; see `align_advantages`.

    Attributes:
        rule: Normalise each part and weigh, or weigh and normalise the sum.
        malformed: Malformed rollouts enter the group at its smallest score − 1, or are kept apart.
        malformed_penalty: Taken off a malformed rollout's advantage.
        std_floor: Smallest standard deviation to divide by.
        weights: Part name → weight; None takes the grammar's.
    """

    rule: Literal["per_part", "combined"]
    malformed: Literal["floor", "apart"]
    malformed_penalty: float
    std_floor: float
    weights: Mapping[str, float] | None = None


class TeacherCalls(NamedTuple):
    """The calls to a teacher, about rows (dicts with an `id`).

    Attributes:
        prefetch: Starts asking, and returns at once.
        teachable: Whether it has a usable answer to each; waits for them.
        answers: Its texts, in order, None where it failed; waits for them.
    """

    prefetch: Callable[[Rows], None]
    teachable: Callable[[Rows], list[bool]]
    answers: Callable[[Rows], Sequence[str | None]]


class OnPolicyDistillTrainer(RolloutTrainer):
    """Adversarial training of policy and discriminator on TRL's GRPO trainer.

    Args:
        policy: The policy to align.
        learner: The warmed-up discriminator with its optimiser.
        teacher: How to ask it.
        advantage: From scores to advantages.
        setup: Arguments of GRPOConfig, rows with `prompt` and `images`, and what watches.
        taught: The parts the teacher writes, where they are not all of the policy's.
    """

    def __init__(
        self,
        policy: Policy,
        learner: DiscriminatorLearner | WatchedLearner,
        teacher: TeacherCalls,
        advantage: AdvantageRule,
        setup: TrainerSetup,
        taught: Grammar | None = None,
    ):
        super().__init__(policy, [self.discriminator], setup)
        self.learner = learner
        self.teacher = teacher
        self.advantage = advantage
        self.reader = PartReader(policy.processor, policy.grammar, taught)
        self.part_weights = self.reader.weights(advantage.weights)
        self.failed_prompts: set[str] = set()
        self._waited = 0.0
        self._answers: dict[str, str | None] = {}

    def save_extra(self, folder: Path) -> None:
        """Writes the discriminator, and which prompts the teacher failed on: the rest follow as they would have."""
        self.learner.save(folder / DISCRIMINATOR)
        if self.is_world_process_zero():
            (folder / FAILED_PROMPTS).write_text(json.dumps(sorted(self.failed_prompts)), encoding="utf-8")

    def load_extra(self, folder: Path) -> None:
        """Continues from a checkpoint.

        Raises:
            CheckpointError: see the learner.
        """
        self.learner.load(folder / DISCRIMINATOR)
        self.failed_prompts.update(json.loads((folder / FAILED_PROMPTS).read_text(encoding="utf-8")))

    def shown_scores(self, rewards: Tensor) -> Mapping[str, Sequence[float]]:
        """Each part's score, for the rollout log."""
        return dict(zip(self.reader.taught.parts, self._scores.T.tolist(), strict=True))

    def teacher_texts(self) -> Mapping[str, str | None]:
        """The teacher's texts of this batch, by row id."""
        return self._answers

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        sampler = cast(EpochSampler, super()._get_train_sampler(dataset))
        ids = list(cast(Dataset, sampler.data_source)["id"])
        return TeachableSampler(
            sampler, ids, self.teacher.prefetch, self._teachable, self._generation_window, self.failed_prompts
        )

    def _generation_window(self) -> tuple[int, int]:
        """The generation batch of the next step and the one past the last step's, counted from the start."""
        steps_a_batch = self.num_iterations * cast(int, cast(GRPOConfig, self.args).steps_per_generation)
        done, all_steps = (
            steps * self.args.gradient_accumulation_steps for steps in (self.state.global_step, self.state.max_steps)
        )
        return done // steps_a_batch, math.ceil(all_steps / steps_a_batch)

    def _teachable(self, rows: Rows) -> list[bool]:
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

    def discriminator(self, completions: list[Any], **columns: Any) -> list[float]:
        """TRL's reward column, for the log only: r of the paper's Eq. 3.

        Args:
            completions: (N,) TRL's; their scores were taken in `score`.
            columns: The rows' columns.

        Returns:
            (N,) the weighted sum of the parts' scores; malformed rollouts at the smallest − 1.
        """
        scores = (self._scores.cpu() * self.part_weights).sum(1)
        valid = self._valid.cpu()
        floor = scores[valid].min() - 1 if valid.any() else torch.tensor(-1.0)
        return torch.where(valid, scores, floor).tolist()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's, on held-out rows that the teacher is asked about all at once."""
        self.teacher.prefetch([{"id": id} for id in cast(Dataset, self.eval_dataset)["id"]])
        return super().evaluate(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        # TRL normalises the summed reward; the method normalises each part and penalises malformed rollouts.
        output["advantages"] = self._local_advantages(len(inputs)).to(output["advantages"])
        return output

    def score(self, batch: Batch) -> None:
        """Scores this process's rollouts against the teacher's answers; when training, updates the discriminator."""
        rows, prompts, responses, completion_ids = batch
        firsts = [i for i, is_first in enumerate(_is_first(rows)) if is_first]
        prompt_of = [sum(first <= i for first in firsts) - 1 for i in range(len(rows))]
        with self._waiting():
            answers = self.teacher.answers([rows[i] for i in firsts])
        self._answers = {rows[i]["id"]: answer for i, answer in zip(firsts, answers, strict=True)}
        taught = [self.reader.text(answer) for answer in answers]
        comparisons = Comparisons(
            prompts=[self.reader.prompt(prompts[i]) for i in firsts],
            teacher=taught,
            rollouts=[
                self.reader.tokens(ids) if response.well_formed else None
                for ids, response in zip(completion_ids, responses, strict=True)
            ],
            prompt_of=prompt_of,
        )
        with phases.within(phases.DISCRIMINATOR):
            scored = self.learner.score_and_update(comparisons) if self.training else self.learner.score(comparisons)
        for name, value in scored.metrics.items():
            self._log_metric(name, value)
        self._log_metric("teacher/malformed_fraction", sum(parts is None for parts in taught) / len(taught))
        self._log_metric("teacher/wait_seconds", self._waited)
        self._log_metric("teacher/failed_prompts", len(self.failed_prompts))
        self._waited = 0.0
        self._scores = scored.scores
        self._valid = torch.tensor([parts is not None for parts in comparisons.rollouts], device=scored.scores.device)

    def _local_advantages(self, count: int) -> Tensor:
        """(N,) advantages of this process's rollouts; groups may lie across processes, so scores are gathered first."""
        advantages = align_advantages(
            cast(Tensor, gather(self._scores)),
            cast(Tensor, gather(self._valid)),
            self.part_weights.to(self._scores.device),
            cast(int, self.num_generations if self.training else self.num_generations_eval),
            rule=self.advantage.rule,
            malformed=self.advantage.malformed,
            std_floor=self.advantage.std_floor,
            malformed_penalty=self.advantage.malformed_penalty,
        )
        start = self.accelerator.process_index * count
        return advantages[start : start + count]


def _is_first(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """(N,) whether a rollout is the first of its prompt; those of a prompt stand side by side."""
    return [i == 0 or row["id"] != rows[i - 1]["id"] for i, row in enumerate(rows)]
