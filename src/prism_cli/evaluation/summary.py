"""The summary of an evaluation: every metric with its interval, and paired differences between runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.evaluation.answering import KINDS, responses_of
from prism_cli.runs.files import read_lines

TEACHER_LOGPROB = "teacher_logprob"
# Keys of a response that are no metrics.
NO_METRICS = ("text", "failed", "unjudged")

Lines = Sequence[Mapping[str, Any]]
Values = dict[str, list[list[float]]]


def samples_file(folder: Path, name: str) -> Path:
    """The samples file of an evaluated run: JSON lines, one a question."""
    return folder / f"samples-{name}.jsonl"


def read_samples(path: Path) -> Values:
    """Metric → for each question the values of its responses, from a samples file."""
    return values_of(read_lines(path))


def values_of(lines: Lines) -> Values:
    """Metric → for each question the values of its responses."""
    values: Values = {}
    for kind, suffix in zip(KINDS, ("greedy", "sampled"), strict=True):
        responses = [responses_of(line, kind) for line in lines]
        metrics = dict.fromkeys(k for question in responses for r in question for k in r if k not in NO_METRICS)
        for metric in metrics:
            values[f"{metric}/{suffix}"] = [[r[metric] for r in question if metric in r] for question in responses]
    for name in dict.fromkeys(key for line in lines for key in line if key.startswith(TEACHER_LOGPROB)):
        values[name] = [[line[name]] if name in line else [] for line in lines]
    return values


def values_with_passes(lines: Lines) -> Values:
    """`values_of` with pass@1, 2, 4, 8 … of the sampled answers after accuracy, as many as there are samples."""
    values = values_of(lines)
    accuracies = {metric: each for metric, each in values.items() if metric.startswith("accuracy/")}
    return accuracies | _passes(lines) | values


def _passes(lines: Lines) -> Values:
    from prism_cli.evaluation.intervals import pass_at

    right = [[r["accuracy"] for r in responses_of(line, "samples") if "accuracy" in r] for line in lines]
    largest = max(map(len, right), default=0)
    return {f"pass@{k}/sampled": pass_at(k, right) for k in (2**i for i in range(largest.bit_length()))}


def failures_of(lines: Lines) -> dict[str, int]:
    """Counts of the responses without a metric: not generated, or without the LLM judge's verdict."""
    responses = [response for line in lines for kind in KINDS for response in responses_of(line, kind)]
    generation, llm_judge = (sum(key in response for response in responses) for key in ("failed", "unjudged"))
    return {"responses": generation + llm_judge, "generation": generation, "llm_judge": llm_judge}


def metrics_of(values: Values) -> dict[str, Any]:
    """Metric → value, low, high, n; metrics that no question has are left out."""
    from prism_cli.evaluation.intervals import mean_interval

    return {metric: mean_interval(each)._asdict() for metric, each in values.items() if any(each)}


def pairs_of(values: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    """Paired differences b − a of every metric that both have, for every two runs."""
    from prism_cli.evaluation.intervals import paired_difference

    for a, b in combinations(values, 2):
        for metric in values[a]:
            both = (values[a][metric], values[b].get(metric, []))
            if any(x and y for x, y in zip(*both, strict=False)):
                value, low, high, _ = paired_difference(*both)
                yield {"a": a, "b": b, "metric": metric, "difference": value, "low": low, "high": high}


def without_infinities(value: Any) -> Any:
    """The same with None for the infinite ends of an interval, which JSON can't hold."""
    if isinstance(value, dict):
        return {key: without_infinities(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_infinities(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Power ---------------------------------------------------------------------------------------------------------------


class Power(NamedTuple):
    """The questions it takes to find a difference.

    Attributes:
        metric: Of accuracy.
        runs: Two that are compared, or one.
        questions: That were evaluated.
        deviation: Standard deviation of a question's difference.
        needed: Questions for the difference asked about.
        smallest: The difference that the questions evaluated find.
    """

    metric: str
    runs: tuple[str, ...]
    questions: int
    deviation: float
    needed: int
    smallest: float


def power_of(values: Mapping[str, Values], difference: float) -> list[Power]:
    """Power of every pair of runs, or of a single one, by the scatter of its questions.

    Args:
        values: Run → its metrics' values.
        difference: Of accuracy, to be found; above zero.
    """
    from prism_cli.evaluation.intervals import spread_of
    from prism_cli.evaluation.power import questions_needed, smallest_difference

    rows = []
    for metric in ("accuracy/greedy", "accuracy/sampled"):
        measured = [run for run in values if sum(map(bool, values[run].get(metric, []))) > 1]
        for runs in list(combinations(measured, 2)) or [(run,) for run in measured]:
            spread = spread_of(*(values[run][metric] for run in runs))
            # Two runs that err independently of each other: no pairing to profit from.
            deviation = spread.deviation * (1 if len(runs) == 2 else 2**0.5)
            needed = questions_needed(difference, deviation)
            rows.append(Power(metric, runs, spread.n, deviation, needed, smallest_difference(spread.n, deviation)))
    return rows
