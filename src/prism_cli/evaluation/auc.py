"""The area under the ROC curve of cross-validated scores, with an interval over prompts."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from prism_cli.evaluation.intervals import Interval

FEWEST_PROMPTS = 10
RESAMPLES = 1000
# Texts whose numbers of words differ by no more than this share count as equally long.
SAME_LENGTH = 0.05

Array = NDArray[np.float64]


def clustered_auc(
    teacher: Array,
    policy: Array,
    prompts: NDArray[np.int64],
    fold: NDArray[np.int64],
    seed: int,
    lengths: Sequence[Array] | None = None,
) -> Interval | None:
    """Chance that a teacher's score is above a policy's of the same fold, with a bootstrap interval over prompts.

    Args:
        teacher: (N,) scores.
        policy: (N,) scores.
        prompts: (N,) prompt of each pair.
        fold: (N,).
        seed: Of the resampling.
        lengths: (N,) of the teacher's texts and (N,) of the policy's; where given, only texts equally long are
            compared.

    Returns:
        None where fewer than 10 prompts have anything to compare.
    """
    draw = np.random.default_rng(seed)
    above, compared, prompts_compared = np.zeros(RESAMPLES + 1), np.zeros(RESAMPLES + 1), 0
    for number in np.unique(fold):
        here = np.flatnonzero(fold == number)
        wins, pairs = _by_prompt(teacher[here], policy[here], prompts[here], lengths and [x[here] for x in lengths])
        prompts_compared += int((pairs.sum(0) + pairs.sum(1) > 0).sum())
        size = len(pairs)
        # The first row is the data as they are.
        weights = np.vstack([np.ones(size), draw.multinomial(size, np.full(size, 1 / size), RESAMPLES)])
        above += ((weights @ wins) * weights).sum(1)
        compared += ((weights @ pairs) * weights).sum(1)
    if prompts_compared < FEWEST_PROMPTS:
        return None
    values = above[compared > 0] / compared[compared > 0]
    return _interval(float(values[0]), values[1:], prompts_compared, len(np.unique(fold)))


def _by_prompt(
    teacher: Array, policy: Array, prompts: NDArray[np.int64], lengths: Sequence[Array] | None
) -> tuple[Array, Array]:
    """(G, G) how often the teacher's texts of one prompt win against the policy's of another, and of how many."""
    order = np.argsort(prompts, kind="stable")
    starts = np.flatnonzero(np.diff(prompts[order], prepend=-1))
    size = len(starts)
    wins, pairs = np.zeros((size, size)), np.zeros((size, size))
    theirs = policy[order]
    for row, members in enumerate(np.split(order, starts[1:])):
        ours = teacher[members][:, None]
        allowed = np.ones((len(members), len(order)))
        if lengths is not None:
            a, b = lengths[0][members][:, None], lengths[1][order][None]
            allowed = (np.abs(a - b) <= SAME_LENGTH * np.maximum(a, b)).astype(float)
        won = ((ours > theirs) + 0.5 * (ours == theirs)) * allowed
        wins[row], pairs[row] = (np.add.reduceat(x.sum(0), starts) for x in (won, allowed))
    return wins, pairs


def _interval(value: float, resampled: Array, n: int, folds: int) -> Interval:
    """95 % of the resampled values, widened for the folds' overlap.

    Centred on the estimate, because in a resample a prompt drawn twice is compared with itself too often.
    """
    if value in (0.0, 1.0):
        # All resamples say the same; no spread is no certainty.
        ends = stats.binomtest(round(value * n), n).proportion_ci(0.95, method="wilson")
        return Interval(value, float(ends.low), float(ends.high), n)
    # Folds share most of what their classifiers learned from, so their mean varies more than its bootstrap says: with
    # variance 1/k + 1/(k−1) instead of 1/k (Nadeau and Bengio, 2003).
    widened = math.sqrt(1 + folds / (folds - 1))
    low, high = value + widened * (np.quantile(resampled, [0.025, 0.975]) - resampled.mean())
    return Interval(value, max(float(low), 0.0), min(float(high), 1.0), n)
