"""Passes over one chunk: to score it, and to learn from it in the same pass where it is one row."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from prism_cli.discriminator.chunks import Chunk, packed_row
from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.losses import DiscriminatorLoss, PairStatistics, discriminator_loss, pair_statistics
from prism_cli.discriminator.replicas import Replicas, Scored
from prism_cli.discriminator.sharding import Shards


class Rule(NamedTuple):
    """The loss; see `DiscriminatorLearner`."""

    score_clip: float | None
    score_penalty: float
    balance: float


class Passes(NamedTuple):
    """The passes over one chunk, the same on every process.

    Attributes:
        backend: Reads rows and takes gradients back.
        batch: Where prompts are found.
        rule: What is learned.
        learn_from: The step's pairs over all processes; 0 learns nothing.
        count: Rows, as many as on the process that has most: the others read empty ones.
        last: Whether this is the step's last chunk.
    """

    backend: Replicas | Shards
    batch: Comparisons
    rule: Rule
    learn_from: int
    count: int
    last: bool

    def score(self, chunk: Chunk | None) -> tuple[Tensor, Tensor, PairStatistics] | None:
        """Scores of the chunk's teacher answers and of its rollouts, K columns each, and their statistics, all without
        dropout; of no chunk, None.

        Several rows are read without gradients to compare, then each again to learn, so that one is in memory at a
        time: between the two stands the gradient of every score.
        """
        rows = [] if chunk is None else chunk.rows
        parts, discriminator = sum(map(len, rows)), self.backend.discriminator
        dropout = discriminator.dropout_factors(parts) if self.learn_from and parts else None
        fused = bool(self.learn_from) and self.count == 1
        with torch.set_grad_enabled(fused):
            reads = [self._read(*row) for row in self._rows(rows, dropout)]
        if chunk is None:
            if self.learn_from:
                self._learn(rows, dropout, torch.zeros(0, device=discriminator.device), 0.0, reads if fused else None)
            return None
        scores = self._split(chunk, torch.cat([read.scores for read in reads]).detach())
        dropped = torch.cat([read.dropped for read in reads]).detach().requires_grad_(bool(self.learn_from))
        loss = self._loss(chunk, dropped)
        if self.learn_from:
            (gradient,) = torch.autograd.grad(loss.loss, dropped)
            # A mean over tokens: weighted by pairs, and within a chunk by parts, the rows add up to one mean.
            share = self.rule.balance * float(chunk.compared.sum()) / self.learn_from * self.backend.world / parts
            self._learn(rows, dropout, gradient, share, reads if fused else None)
        clip = self.rule.score_clip
        statistics = pair_statistics(*scores, chunk.compared, chunk.teacher_row, chunk.equal, loss.parts, clip)
        return *scores, statistics

    def _learn(
        self, rows: list, dropout: Tensor | None, gradient: Tensor, share: float, reads: list[Scored] | None
    ) -> None:
        """Takes each score's gradient (R,) back through the body, and the load-balancing loss with it."""
        taken = 0
        for i, row in enumerate(self._rows(rows, dropout)):
            read = self._read(*row) if reads is None else reads[i]
            here = len(read.dropped)
            loss = (read.dropped * gradient[taken : taken + here]).sum()
            if read.balance is not None:
                loss = loss + read.balance * (share * here)
            self.backend.backward(loss, self.last and i == self.count - 1)
            taken += here

    def _rows(self, rows: list, dropout: Tensor | None) -> Iterator[tuple[list | None, Tensor | None]]:
        """Each row with its share of dropout's factors (R, H), then empty ones."""
        factors = [None] * len(rows) if dropout is None else dropout.split([len(row) for row in rows])
        yield from zip(rows, factors, strict=True)
        yield from [(None, None)] * (self.count - len(rows))

    def _read(self, texts: list | None, dropout: Tensor | None) -> Scored:
        row = None if texts is None else packed_row(self.backend.discriminator, self.batch, texts)
        learning = torch.is_grad_enabled() and texts is not None
        return self.backend.read(row, dropout, balance=bool(self.rule.balance) and learning)

    def _loss(self, chunk: Chunk, scores: Tensor) -> DiscriminatorLoss:
        return discriminator_loss(
            *self._split(chunk, scores),
            chunk.compared,
            chunk.teacher_row,
            score_clip=self.rule.score_clip,
            score_penalty=self.rule.score_penalty,
            valid_count=self.learn_from or None,
            world_size=self.backend.world,
        )

    def _split(self, chunk: Chunk, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (R,) of a chunk's parts as those of its teacher answers and of its rollouts, K columns each."""
        by_text = scores.view(-1, len(self.backend.discriminator.parts))
        teacher, rollouts = by_text.split([len(chunk.taught), len(chunk.rollouts)])
        return teacher, rollouts
