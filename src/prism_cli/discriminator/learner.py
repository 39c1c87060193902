"""Scores rollouts and trains the discriminator on them, in one pass of its body where a group fits in memory."""

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from prism_cli.discriminator.sharding import Shards
from prism_cli.errors import PrismError


class Judgement(NamedTuple):
    """Scores without dropout, by the weights before the update, and what was measured.

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
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        score_clip: Scores enter the loss clipped to ± this; None for no clip.
        score_penalty: Weight of the mean squared score in the loss.
        balance: Weight of the load-balancing loss (`moe` only).
        max_grad_norm: Gradients are scaled down to this norm.
        micro_batch: Rollouts in one forward and backward; bounds memory; the gradient is the same. Whole prompts go
            together; a prompt with more rollouts is read in pieces, once to compare and once more to learn.
        schedule: `cosine` falls to zero over `total_steps`; both rise over `warmup_steps` first.
        warmup_steps: Steps of rising learning rate.
        total_steps: Needed by `cosine`.
        zero: Shard the judge over the processes: 2 gradients and optimiser states, 3 the weights too. None keeps a
            whole one on each.
        offload: Keep what is sharded in main memory.
        bf16: Compute in bfloat16; the optimiser steps in float32 either way.

    Raises:
        ValueError: an option that this discriminator or schedule could not follow.
        PrismError: `zero` without DeepSpeed.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        learning_rate: float = 1e-6,
        weight_decay: float = 0.01,
        score_clip: float | None = 10.0,
        score_penalty: float = 0.001,
        balance: float = 0.0,
        max_grad_norm: float = 1.0,
        micro_batch: int = 16,
        schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int = 0,
        total_steps: int | None = None,
        zero: Literal[2, 3] | None = None,
        offload: bool = False,
        bf16: bool = False,
    ):
        if balance and discriminator.kind != "moe":
            raise ValueError(
                f"balance is {balance}, but a {discriminator.kind} discriminator has no experts to balance"
            )
        if schedule == "cosine" and total_steps is None:
            raise ValueError("a cosine schedule needs total_steps")
        processes.start()
        self.discriminator = discriminator
        self.rule = Rule(score_clip, score_penalty, balance)
        self.micro_batch, self.step = micro_batch, 0
        self.weights = [weight for weight in discriminator.parameters() if weight.requires_grad]
        # Fused: offloaded states are stepped on the CPU.
        self.optimizer = torch.optim.AdamW(
            self.weights, learning_rate, weight_decay=weight_decay, fused=offload or None
        )
        self._way: Replicas | Shards = (
            Replicas(discriminator, self.optimizer, max_grad_norm, bf16)
            if zero is None
            else Shards(discriminator, self.optimizer, max_grad_norm, bf16, zero, offload)
        )
        name = "constant_with_warmup" if schedule == "constant" else schedule
        self.scheduler = get_scheduler(name, self.optimizer, warmup_steps, total_steps)

    def score(self, batch: Comparisons) -> Judgement:
        """Scores and measures without learning; the loss in the metrics is free of dropout."""
        with torch.no_grad():
            return self._judge(batch, learn_from=0)

    def score_and_update(self, batch: Comparisons) -> Judgement:
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
            judged = self.score(batch)
            return judged._replace(metrics={**judged.metrics, "discriminator/skipped": 1.0})
        # Rewards are computed under no_grad by trainers; this pass is also the training pass.
        with torch.enable_grad():
            judged = self._judge(batch, learn_from=pairs)
        norm = self._way.step()
        if not math.isfinite(norm):
            raise PrismError(f"discriminator step {self.step}: the gradient is not finite", hint=_NOT_FINITE_HINT)
        self.scheduler.step()
        self.step += 1
        return judged._replace(
            metrics={**judged.metrics, "discriminator/grad_norm": norm, "discriminator/skipped": 0.0}
        )

    def save(self, folder: str | Path) -> None:
        """Writes a checkpoint of discriminator and optimiser; call it on every process. The random state is the
        trainer's."""
        self._way.save(Path(folder), self._progress())

    def load(self, folder: str | Path) -> None:
        """Continues from a folder that `save` wrote, bit for bit.

        Raises:
            CheckpointError: the folder holds no such checkpoint, or one sharded otherwise.
        """
        self._continue(self._way.load(Path(folder)))

    def save_trained(self, folder: str | Path) -> None:
        """Writes a checkpoint of what is trained and the optimiser, such as adapters; call it on every process."""
        self._way.save_trained(Path(folder), self._progress())

    def load_trained(self, folder: str | Path) -> None:
        """Continues from a folder that `save_trained` wrote.

        Raises:
            CheckpointError: see `load`.
        """
        self._continue(self._way.load_trained(Path(folder)))

    def save_discriminator(self, folder: str | Path) -> None:
        """Writes one plain discriminator, however it is sharded; call it on every process."""
        self._way.save_discriminator(Path(folder))

    def close(self) -> None:
        """Ends the learning. A sharded discriminator is no use after it: open the saved one."""
        self._way.close()

    def _progress(self) -> dict[str, Any]:
        return {"scheduler": self.scheduler.state_dict(), "step": self.step}

    def _continue(self, progress: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(progress["scheduler"])
        self.step = progress["step"]

    @property
    def _device(self) -> torch.device:
        return self.discriminator.device

    # One pass -----------------------------------------------------------------------------------------------------

    def _judge(self, batch: Comparisons, learn_from: int) -> Judgement:
        """All scores, chunk by chunk; with `learn_from` (the step's pairs over all processes) gradients gather too."""
        names = self.discriminator.parts
        scores = torch.full((len(batch.rollouts), len(names)), torch.nan, device=self._device)
        teacher = torch.full((len(batch.prompts), len(names)), torch.nan, device=self._device)
        totals = torch.zeros(len(PairStatistics._fields), len(names), device=self._device, dtype=torch.float64)
        own = list(chunks(self.discriminator, batch, self.micro_batch))
        counts = self._way.agreed([len(chunk.rows) for chunk in own])
        for i, count in enumerate(counts):
            chunk = own[i] if i < len(own) else None
            passes = Passes(self._way, batch, self.rule, learn_from, count, last=i == len(counts) - 1)
            judged = passes.judge(chunk)
            if chunk is not None and judged is not None:
                teacher[chunk.taught], scores[chunk.rollouts] = judged[:2]
                totals += torch.stack(judged[2])
        metrics = PairStatistics(*self._summed(totals)).metrics(names)
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise PrismError(f"discriminator step {self.step}: {key} is {value}", hint=_NOT_FINITE_HINT)
        return Judgement(scores, teacher, metrics)

    def _summed(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self._way.world > 1:
            dist.all_reduce(values)
        return values


_NOT_FINITE_HINT = "lower discriminator.learning_rate and start over: --fresh, or --output NEW"
