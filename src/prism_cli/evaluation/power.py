"""Power: the questions that it takes to find a difference."""

import math

from scipy import stats


def questions_needed(difference: float, deviation: float, power: float = 0.8, level: float = 0.95) -> int:
    """Questions at which a true difference is found with the chance `power`, by a two-sided test on paired values.

    n = ((z(level) + z(power)) · deviation / difference)², for the normal approximation; two at least.

    Args:
        difference: The true difference of means.
        deviation: Standard deviation of a question's difference.
        power: Chance to find it.
        level: Of the interval that must leave out zero.

    Raises:
        ValueError: the difference is not above zero.
    """
    if difference <= 0:
        raise ValueError("a difference to be found is above zero")
    return max(2, math.ceil((_quantiles(power, level) * deviation / difference) ** 2))


def smallest_difference(questions: int, deviation: float, power: float = 0.8, level: float = 0.95) -> float:
    """The true difference that so many questions find with the chance `power`; see `questions_needed`."""
    return _quantiles(power, level) * deviation / math.sqrt(questions)


def _quantiles(power: float, level: float) -> float:
    return float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power))
