"""Confidence intervals over questions; the samples of one question are not independent."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats


class Interval(NamedTuple):
    """An estimate with its confidence interval.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end. Both ends are infinite where one question is all there is.
        n: Questions it rests on.
    """

    value: float
    low: float
    high: float
    n: int


class Spread(NamedTuple):
    """Scatter over questions.

    Attributes:
        deviation: Standard deviation of a question's value.
        n: Questions it rests on.
    """

    deviation: float
    n: int


def mean_interval(values_by_question: Sequence[Sequence[float]], level: float = 0.95) -> Interval:
    """The mean over questions of each question's mean, with an interval clustered by question.

    Wilson's interval where every question has a single 0 or 1 (or all are 0, or all are 1: no spread is no certainty);
    else Student's t on the question means.

    Args:
        values_by_question: Per question, the values of its samples; questions without any are left out.
        level: Confidence level.

    Raises:
        ValueError: no question has a value, or one isn't finite.
    """
    groups = [list(values) for values in values_by_question if len(values)]
    means = _finite([math.fsum(values) / len(values) for values in groups])
    binary = all(value in (0, 1) for values in groups for value in values)
    if binary and (all(len(values) == 1 for values in groups) or set(means) in ({0.0}, {1.0})):
        hits = round(sum(means))
        ends = stats.binomtest(hits, len(means)).proportion_ci(level, method="wilson")
        return Interval(hits / len(means), float(ends.low), float(ends.high), len(means))
    return _student(means, level)


def paired_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], level: float = 0.95) -> Interval:
    """The difference of means on the same questions (b − a), with an interval over the questions' differences.

    Args:
        a: Per question, the values of its samples.
        b: The same questions in the same order. A question without values on either side is left out.
        level: Confidence level.

    Raises:
        ValueError: the numbers of questions differ, no question has values on both sides, or one isn't finite.
    """
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} questions, b has {len(b)}; a paired difference needs the same ones")
    pairs = [(one, other) for one, other in zip(a, b, strict=True) if len(one) and len(other)]
    differences = _finite([math.fsum(y) / len(y) - math.fsum(x) / len(x) for x, y in pairs])
    return _student(differences, level)


def pass_at(k: int, right: Sequence[Sequence[float]]) -> list[list[float]]:
    """Per question the chance that at least one of k samples is right, estimated without bias from all n ≥ k of them.

    1 − C(n − c, k) / C(n, k) with c of n right (Chen et al. 2021, arXiv 2107.03374, equation 1). One value a question,
    none where there are fewer samples than k.

    Args:
        k: Samples one may take.
        right: Per question, 1 or 0 for each of its samples.
    """
    counts = [(len(values), round(sum(values))) for values in right]
    return [[1 - math.comb(n - c, k) / math.comb(n, k)] if n >= k else [] for n, c in counts]


def spread_of(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]] | None = None) -> Spread:
    """The scatter over questions: of one run's means, or of two runs' paired differences.

    Args:
        a: Per question, the values of its samples.
        b: The same questions in the same order, or None.

    Raises:
        ValueError: fewer than two questions have values.
    """
    if b is None:
        means = [math.fsum(x) / len(x) for x in a if len(x)]
    else:
        both = [(x, y) for x, y in zip(a, b, strict=True) if len(x) and len(y)]
        means = [math.fsum(y) / len(y) - math.fsum(x) / len(x) for x, y in both]
    if len(means) < 2:
        raise ValueError("fewer than two questions have values")
    return Spread(statistics.stdev(_finite(means)), len(means))


def _student(means: list[float], level: float) -> Interval:
    """Student's t on independent values; infinite ends for a single one."""
    n, value = len(means), math.fsum(means) / len(means)
    if n == 1:
        return Interval(value, -math.inf, math.inf, 1)
    variance = math.fsum((mean - value) ** 2 for mean in means) / (n - 1)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * math.sqrt(variance / n)
    return Interval(value, value - half, value + half, n)


def _finite(means: list[float]) -> list[float]:
    if not means:
        raise ValueError("no question has a value")
    if not all(map(math.isfinite, means)):
        raise ValueError("a value is not finite")
    return means
