"""Scores rollouts and trains the discriminator on them, in one pass of its body where a group fits in memory."""

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import get_scheduler

from prism_cli.discriminator.chunks import Chunk, chunks
from prism_cli.discriminator.inputs import Comparisons, ScoreInputs
from prism_cli.discriminator.losses import PairStatistics, discriminator_loss, pair_statistics
from prism_cli.discriminator.model import Discriminator, Reading
from prism_cli.errors import CheckpointError, PrismError

OPTIMIZER_FILE = "optimizer.pt"


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
    processes, so a process without a valid rollout still takes the same step.

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

    Raises:
        ValueError: an option that this discriminator or schedule could not follow.
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
    ):
        if balance and discriminator.kind != "moe":
            raise ValueError(
                f"balance is {balance}, but a {discriminator.kind} discriminator has no experts to balance"
            )
        if schedule == "cosine" and total_steps is None:
            raise ValueError("a cosine schedule needs total_steps")
        self.discriminator = discriminator
        self.score_clip, self.score_penalty, self.balance = score_clip, score_penalty, balance
        self.max_grad_norm, self.micro_batch, self.step = max_grad_norm, micro_batch, 0
        self.weights = [weight for weight in discriminator.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=learning_rate, weight_decay=weight_decay)
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
        pairs = int(_summed(torch.tensor(here, device=self._device)))
        if not pairs:
            judged = self.score(batch)
            return judged._replace(metrics={**judged.metrics, "discriminator/skipped": 1.0})
        self.optimizer.zero_grad()
        # Rewards are computed under no_grad by trainers; this pass is also the training pass.
        with torch.enable_grad():
            judged = self._judge(batch, learn_from=pairs)
        _average_gradients(self.weights)
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, self.max_grad_norm))
        if not math.isfinite(norm):
            raise PrismError(f"discriminator step {self.step}: the gradient is not finite", hint=_NOT_FINITE_HINT)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return judged._replace(
            metrics={**judged.metrics, "discriminator/grad_norm": norm, "discriminator/skipped": 0.0}
        )

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, schedule and step; the weights are the discriminator's own, the random state the trainer's."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]

    def save(self, folder: str | Path) -> None:
        """Writes discriminator and optimiser; call it on one process."""
        self.discriminator.save_pretrained(folder)
        torch.save(self.state_dict(), Path(folder) / OPTIMIZER_FILE)

    def load(self, folder: str | Path) -> None:
        """Continues from a folder that `save` wrote, bit for bit.

        Raises:
            CheckpointError: the folder holds no discriminator, or one without its optimiser.
        """
        if not (Path(folder) / OPTIMIZER_FILE).exists():
            raise CheckpointError(f"{folder}: {OPTIMIZER_FILE} is missing, so training can't continue from here")
        self.discriminator.load_state_dict(Discriminator.from_pretrained(folder).state_dict())
        self.load_state_dict(torch.load(Path(folder) / OPTIMIZER_FILE, weights_only=True, map_location=self._device))

    @property
    def _device(self) -> torch.device:
        return self.discriminator.device

    def _judge(self, batch: Comparisons, learn_from: int) -> Judgement:
        """All scores, chunk by chunk; with `learn_from` (the step's pairs over all processes) gradients gather too."""
        names = self.discriminator.parts
        scores = torch.full((len(batch.rollouts), len(names)), torch.nan, device=self._device)
        teacher = torch.full((len(batch.prompts), len(names)), torch.nan, device=self._device)
        totals = torch.zeros(len(PairStatistics._fields), len(names), device=self._device, dtype=torch.float64)
        for chunk in chunks(self.discriminator, batch, self.micro_batch):
            teacher_scores, rollout_scores, statistics = self._judge_chunk(chunk, learn_from)
            teacher[chunk.taught], scores[chunk.rollouts] = teacher_scores, rollout_scores
            totals += torch.stack(statistics)
        metrics = PairStatistics(*_summed(totals)).metrics(names)
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise PrismError(f"discriminator step {self.step}: {key} is {value}", hint=_NOT_FINITE_HINT)
        return Judgement(scores, teacher, metrics)

    def _judge_chunk(self, chunk: Chunk, learn_from: int) -> tuple[Tensor, Tensor, PairStatistics]:
        """Scores without dropout of the chunk's teacher answers and of its rollouts; backward when there is a step.

        Dropout sits in the head, so the loss follows from the read-out states: their gradient is taken first, and then
        goes back through the body. A chunk of several rows is read again for that, row by row, to bound memory.
        """
        keep = bool(learn_from) and len(chunk.rows) == 1
        with torch.set_grad_enabled(keep):
            readings = [self._read(row, learn_from) for row in chunk.rows]
        hidden = torch.cat([reading.hidden.detach() for reading in readings]).requires_grad_(bool(learn_from))
        scores = self._split(chunk, self.discriminator.score(hidden).detach())
        used = self._split(chunk, self.discriminator.score_dropped(hidden)) if learn_from else scores
        loss, parts = discriminator_loss(
            *used,
            chunk.compared,
            chunk.teacher_row,
            score_clip=self.score_clip,
            score_penalty=self.score_penalty,
            valid_count=learn_from or None,
            world_size=_world_size(),
        )
        if learn_from:
            loss.backward()
            assert hidden.grad is not None
            # A mean over tokens: weighted by pairs, and within a chunk by parts, the rows add up to one mean.
            share = self.balance * float(chunk.compared.sum()) / learn_from * _world_size() / len(hidden)
            gradients = hidden.grad.split([len(reading.hidden) for reading in readings])
            for row, reading, gradient in zip(chunk.rows, readings, gradients, strict=True):
                _learn(reading if keep else self._read(row, learn_from), gradient, share * len(gradient))
        statistics = pair_statistics(
            *scores, chunk.compared, chunk.teacher_row, chunk.equal, loss=parts, score_clip=self.score_clip
        )
        return *scores, statistics

    def _split(self, chunk: Chunk, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (R,) of a chunk's parts as those of its teacher answers and of its rollouts, K columns each."""
        teacher, rollouts = scores.view(-1, len(self.discriminator.parts)).split(
            [len(chunk.taught), len(chunk.rollouts)]
        )
        return teacher, rollouts

    def _read(self, row: ScoreInputs, learn_from: int) -> Reading:
        return self.discriminator.read(row, balance=bool(self.balance and learn_from))


def _learn(reading: Reading, gradient: Tensor, balance: float) -> None:
    """Backward through the body, from the read-out states' gradient and from the load-balancing loss."""
    roots, gradients = [reading.hidden], [gradient]
    if reading.balance is not None:
        roots.append(reading.balance)
        gradients.append(torch.full_like(reading.balance, balance))
    torch.autograd.backward(roots, gradients)


_NOT_FINITE_HINT = "lower discriminator.learning_rate and start over: --fresh, or --output NEW"


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _summed(values: Tensor) -> Tensor:
    """The sum over processes."""
    if _world_size() > 1:
        dist.all_reduce(values)
    return values


def _average_gradients(weights: list[torch.nn.Parameter]) -> None:
    """Averages gradients over processes; a weight without one counts as zero, so that every process steps alike."""
    world = _world_size()
    for weight in weights:
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if world > 1:
            dist.all_reduce(gradient)
            gradient /= world
        weight.grad = gradient
