"""The discriminator's loss, and the statistics of its scores: tensors in, tensors out.

Letters: P prompts, N rollouts, K parts. A *pair* is a well-formed rollout beside its prompt's teacher answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class DiscriminatorLoss(NamedTuple):
    """The loss to run backward, and each part's share of it.

    Attributes:
        loss: (), Σ_k Bradley-Terry + score penalty, averaged over all pairs of the step.
        parts: (K,), detached Bradley-Terry sums over the pairs given (not yet divided by their number).
    """

    loss: Tensor
    parts: Tensor


class PairStatistics(NamedTuple):
    """Sums over pairs, part by part, each (K,) float64; add them up over batches and processes, then `metrics`."""

    pairs: Tensor
    unequal: Tensor
    wins: Tensor
    teacher: Tensor
    policy: Tensor
    saturated: Tensor
    loss: Tensor

    def metrics(self, names: Sequence[str]) -> dict[str, float]:
        """Means a part, named `discriminator/<quantity>/<part>`; what no pair measured is absent."""
        result = {}
        for k, name in enumerate(names):
            pairs, unequal, wins, teacher, policy, saturated, loss = (float(values[k]) for values in self)
            if pairs:
                result |= {
                    f"discriminator/loss/{name}": loss / pairs,
                    f"discriminator/margin/{name}": (teacher - policy) / pairs,
                    f"discriminator/teacher_score/{name}": teacher / pairs,
                    f"discriminator/policy_score/{name}": policy / pairs,
                    f"discriminator/saturated_fraction/{name}": saturated / (2 * pairs),
                    f"discriminator/equal_pairs/{name}": pairs - unequal,
                }
            if unequal:
                result[f"discriminator/accuracy/{name}"] = wins / unequal
        return result


def bradley_terry(teacher: Tensor, student: Tensor) -> Tensor:
    """−log σ(t − s): the surprise of a discriminator with these scores that the teacher is preferred.

    Args:
        teacher: (M,) scores.
        student: (M,) scores.

    Returns:
        (M,) nats.
    """
    return -F.logsigmoid(teacher - student)


def discriminator_loss(
    teacher: Tensor,
    student: Tensor,
    valid: Tensor,
    prompt_of: Tensor,
    score_clip: float | None = 10.0,
    score_penalty: float = 0.001,
    valid_count: int | None = None,
    world_size: int = 1,
) -> DiscriminatorLoss:
    """Bradley-Terry loss summed over parts, plus a penalty on large scores, averaged over every pair of the step.

    The penalty is the mean square of the scores before clipping, so that a saturated score still finds its way back.
    The teacher's score counts once a pair, so any split of the step into batches adds up to the same loss.

    Args:
        teacher: (P, K) scores of the teacher's parts.
        student: (N, K) scores of the rollouts' parts; only valid rows are read.
        valid: (N,) bool, which rollouts are compared.
        prompt_of: (N,) long, the row of `teacher` that belongs to each rollout.
        score_clip: Scores enter the comparison clipped to ± this; None leaves them.
        score_penalty: Weight of the mean squared score.
        valid_count: Pairs of the whole step, over batches and processes; those given here by default.
        world_size: Processes whose gradients will be averaged.
    """
    t, s = teacher[prompt_of[valid]], student[valid]
    squares = (t.square() + s.square()).mean(-1).sum() / 2
    if score_clip is not None:
        t, s = t.clamp(-score_clip, score_clip), s.clamp(-score_clip, score_clip)
    parts = bradley_terry(t, s).sum(0)
    count = max(len(s) if valid_count is None else valid_count, 1)
    loss = (parts.sum() + score_penalty * squares) * (world_size / count)
    return DiscriminatorLoss(loss, parts.detach())


@torch.no_grad()
def pair_statistics(
    teacher: Tensor,
    student: Tensor,
    valid: Tensor,
    prompt_of: Tensor,
    equal: Tensor,
    loss: Tensor,
    score_clip: float | None = 10.0,
) -> PairStatistics:
    """Statistics of the pairs from scores without dropout: who wins, by how much, how saturated.

    Args:
        teacher: (P, K).
        student: (N, K); only valid rows are read.
        valid: (N,) bool, which rollouts are compared.
        prompt_of: (N,) long, rows of `teacher`.
        equal: (N, K) bool, pairs of the same text; counted, but left out of who wins.
        loss: (K,) Bradley-Terry sums over these pairs.
        score_clip: Where a score counts as saturated; None counts nothing.
    """
    t, s = teacher[prompt_of[valid]].double(), student[valid].double()
    unequal = ~equal[valid]
    limit = torch.inf if score_clip is None else score_clip
    return PairStatistics(
        pairs=t.new_full((t.shape[1],), len(t)),
        unequal=unequal.double().sum(0),
        wins=((t > s) & unequal).double().sum(0),
        teacher=t.sum(0),
        policy=s.sum(0),
        saturated=((t.abs() >= limit).double() + (s.abs() >= limit).double()).sum(0),
        loss=loss.double(),
    )
