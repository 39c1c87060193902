"""A study's statistics: a metric of an arm beside the baseline's, over seeds."""

from collections.abc import Sequence
from typing import Any

from prism_cli.evaluation.intervals import mean_interval, paired_difference

# Of one metric, for each question the values of its responses.
Responses = list[list[float]]
Values = dict[str, Responses]


def over_seeds(pairs: Sequence[tuple[Responses, Responses]]) -> dict[str, Any]:
    """A metric of an arm beside the baseline's, over seeds.

    Args:
        pairs: A seed each: the baseline's values and the arm's, a list a question.

    Returns:
        `mean` over seeds, with that of each; the difference `by_seed` with an interval over questions, and `over_seeds`
        with one over seeds; `agree`: every seed's interval lies on the same side of zero.
    """
    means = [[mean_interval(values).value for values in pair] for pair in pairs]
    by_seed = [paired_difference(base, values) for base, values in pairs]
    over = paired_difference([[base] for base, _ in means], [[value] for _, value in means])
    alone = len(pairs) == 1
    return {
        "mean": {"value": sum(value for _, value in means) / len(means), "by_seed": [value for _, value in means]},
        "by_seed": [{"value": d.value, "low": d.low, "high": d.high} for d in by_seed],
        # One seed says nothing about seeds.
        "over_seeds": {"value": over.value, "low": None if alone else over.low, "high": None if alone else over.high},
        "agree": all(d.low > 0 for d in by_seed) or all(d.high < 0 for d in by_seed),
    }
