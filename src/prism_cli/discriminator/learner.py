"""The discriminator's learner: scores rollouts and trains on them, in one pass where a group fits in memory."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import get_scheduler

from prism_cli import processes
from prism_cli.discriminator.chunks import chunks
from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.losses import PairStatistics
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.passes import Passes, Rule
from prism_cli.discriminator.replicas import Replicas
from prism_cli.discriminator.settings import LearnerSettings
from prism_cli.discriminator.sharding import Shards
from prism_cli.errors import PrismError
from prism_cli.models import device


class BatchScores(NamedTuple):
    """The scores of a batch, without dropout and by the weights before the update, and its metrics.

    Attributes:
        scores: (N, K) of the rollouts; NaN where a rollout is malformed.
        teacher: (P, K) of the teacher's answers; NaN where malformed, or where no rollout stands beside it.
        metrics: `discriminator/…`, over all processes; what was not measured is absent.
    """

    scores: Tensor
    teacher: Tensor
    metrics: dict[str, float]


class DiscriminatorLearner:
    """The discriminator with its optimiser.

    Every process calls the same methods the same number of times; counts, statistics and gradients are summed over
    processes, so a process without a valid rollout still takes the same step, and a group may lie across them.

    Args:
        discriminator: Trained in place.
        settings: How.

    Raises:
        ValueError: an option that this discriminator or schedule could not follow.
        PrismError: `zero` without DeepSpeed.
    """

    def __init__(self, discriminator: Discriminator, settings: LearnerSettings = LearnerSettings()):  # noqa: B008 (frozen)
        if settings.balance and discriminator.kind != "moe":
            raise ValueError(
                f"balance is {settings.balance}, but a {discriminator.kind} discriminator has no experts to balance"
            )
        if settings.schedule == "cosine" and settings.total_steps is None:
            raise ValueError("a cosine schedule needs total_steps")
        processes.start()
        self.discriminator = discriminator
        self.rule = Rule(settings.score_clip, settings.score_penalty, settings.balance)
        self.micro_batch, self.step = settings.micro_batch, 0
        self.weights = [weight for weight in discriminator.parameters() if weight.requires_grad]
        # Fused: offloaded states are stepped on the CPU.
        self.optimizer = torch.optim.AdamW(
            self.weights, settings.learning_rate, weight_decay=settings.weight_decay, fused=settings.offload or None
        )
        clip, bf16 = settings.max_grad_norm, settings.bf16
        self._backend: Replicas | Shards = (
            Replicas(discriminator, self.optimizer, clip, bf16)
            if settings.zero is None
            else Shards(discriminator, self.optimizer, clip, bf16, settings.zero, settings.offload)
        )
        name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
        self.scheduler = get_scheduler(name, self.optimizer, settings.warmup_steps, settings.total_steps)

    @classmethod
    def on_device(cls, discriminator: Discriminator, settings: LearnerSettings) -> "DiscriminatorLearner":
        """A learner on the accelerator, if there is one; every process makes one.

        On a GPU it computes as the policy does: in bfloat16, each layer's activations twice.

        Args:
            discriminator: Trained in place.
            settings: How.
        """
        on_gpu = torch.accelerator.is_available()
        if on_gpu:
            discriminator.recompute_activations()
        # An engine moves what it shards.
        there = discriminator if settings.zero else discriminator.to(device())
        return cls(there, settings._replace(bf16=on_gpu))

    def score(self, batch: Comparisons) -> BatchScores:
        """Scores and measures without learning; the loss in the metrics is free of dropout."""
        with torch.no_grad():
            return self._score(batch, learn_from=0)

    def score_and_update(self, batch: Comparisons) -> BatchScores:
        """Scores with the weights as they are, then takes one step on the same pass.

        The scores are the rewards. With no pair to learn from on any process there is no step, and
        `discriminator/skipped` is 1.

        Raises:
            PrismError: a loss or gradient is not finite; the weights are left as they were.
        """
        here = sum(
            parts is not None and batch.teacher[p] is not None
            for parts, p in zip(batch.rollouts, batch.prompt_of, strict=True)
        )
        pairs = int(self._summed(torch.tensor(here, device=self._device)))
        if not pairs:
            scored = self.score(batch)
            return scored._replace(metrics={**scored.metrics, "discriminator/skipped": 1.0})
        # Rewards are computed under no_grad by trainers; this pass is also the training pass.
        with torch.enable_grad():
            scored = self._score(batch, learn_from=pairs)
        norm = self._backend.step()
        if not math.isfinite(norm):
            raise PrismError(f"discriminator step {self.step}: the gradient is not finite", hint=_NOT_FINITE_HINT)
        self.scheduler.step()
        self.step += 1
        return scored._replace(
            metrics={**scored.metrics, "discriminator/grad_norm": norm, "discriminator/skipped": 0.0}
        )

    def save(self, folder: str | Path) -> None:
        """Writes a checkpoint of discriminator and optimiser; call it on every process. The random state is the
        trainer's."""
        self._backend.save(Path(folder), self._progress())

    def load(self, folder: str | Path) -> None:
        """Continues from a folder that `save` wrote, bit for bit.

        Raises:
            CheckpointError: the folder holds no such checkpoint, or one sharded otherwise.
        """
        self._continue(self._backend.load(Path(folder)))

    def save_trained(self, folder: str | Path) -> None:
        """Writes a checkpoint of what is trained and the optimiser, such as adapters; call it on every process."""
        self._backend.save_trained(Path(folder), self._progress())

    def load_trained(self, folder: str | Path) -> None:
        """Continues from a folder that `save_trained` wrote.

        Raises:
            CheckpointError: see `load`.
        """
        self._continue(self._backend.load_trained(Path(folder)))

    def save_discriminator(self, folder: str | Path) -> None:
        """Writes one plain discriminator, however it is sharded; call it on every process."""
        self._backend.save_discriminator(Path(folder))

    def close(self) -> None:
        """Ends the learning. A sharded discriminator is no use after it: open the saved one."""
        self._backend.close()

    def _progress(self) -> dict[str, Any]:
        return {"scheduler": self.scheduler.state_dict(), "step": self.step}

    def _continue(self, progress: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(progress["scheduler"])
        self.step = progress["step"]

    @property
    def _device(self) -> torch.device:
        return self.discriminator.device

    # One pass -----------------------------------------------------------------------------------------------------

    def _score(self, batch: Comparisons, learn_from: int) -> BatchScores:
        """All scores, chunk by chunk; with `learn_from` (the step's pairs over all processes) gradients gather too."""
        names = self.discriminator.parts
        scores = torch.full((len(batch.rollouts), len(names)), torch.nan, device=self._device)
        teacher = torch.full((len(batch.prompts), len(names)), torch.nan, device=self._device)
        totals = torch.zeros(len(PairStatistics._fields), len(names), device=self._device, dtype=torch.float64)
        own = list(chunks(self.discriminator, batch, self.micro_batch))
        counts = self._backend.agreed([len(chunk.rows) for chunk in own])
        for i, count in enumerate(counts):
            chunk = own[i] if i < len(own) else None
            passes = Passes(self._backend, batch, self.rule, learn_from, count, last=i == len(counts) - 1)
            scored = passes.score(chunk)
            if chunk is not None and scored is not None:
                teacher[chunk.taught], scores[chunk.rollouts] = scored[:2]
                totals += torch.stack(scored[2])
        metrics = PairStatistics(*self._summed(totals)).metrics(names)
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise PrismError(f"discriminator step {self.step}: {key} is {value}", hint=_NOT_FINITE_HINT)
        return BatchScores(scores, teacher, metrics)

    def _summed(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self._backend.world > 1:
            dist.all_reduce(values)
        return values


_NOT_FINITE_HINT = "lower discriminator.learning_rate and start over: --fresh, or --output NEW"
