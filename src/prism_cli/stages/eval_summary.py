"""What an evaluation found: every metric with its interval, differences between runs, and what it could have seen."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_cli.errors import RecipeError
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.runs.folder import Run
from prism_cli.runs.references import read_manifest, resolve_model
from prism_cli.stages import eval_attribution
from prism_cli.stages.eval_benchmarks import measured
from prism_cli.stages.eval_samples import TEACHER_LOGPROB, read_lines, responses_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SUMMARY = "summary.json"
# What a response has beside metrics.
NO_METRICS = ("text", "failed", "unjudged")

Values = dict[str, list[list[float]]]


def summed_up(recipe: EvalRecipe, names: Mapping[str, str], run: Run) -> dict[str, Any]:
    """What summary.json holds: every metric of every run with its interval, and paired differences between all runs."""
    lines = {name: _lines(run.folder, name) for name in names} if recipe.data is not None else {}
    values = {name: _all_values(of) for name, of in lines.items()}
    counts = {name: _failures(of) for name, of in lines.items()}
    runs = []
    for name, reference in names.items():
        source = Path(resolve_model(reference)[1]["run"])
        metrics = _metrics(values.get(name, {}))
        if any(count["responses"] for count in counts.values()):
            found = {"value": counts[name]["responses"], "low": None, "high": None, "n": len(lines[name])}
            metrics["failed"] = found
        failed = {"failed": counts[name]} if name in counts else {}
        runs.append(
            {"id": name, "path": str(source), "stage": read_manifest(source)["stage"], "metrics": metrics} | failed
        )
    settings = {
        "questions": len(next(iter(lines.values()), [])),
        "samples": recipe.samples,
        "temperature": recipe.temperature,
        "max_response_tokens": recipe.max_response_tokens,
        "seed": recipe.seed,
        "engines": run.manifest.get("engines", {}),
    }
    pairs = list(_pairs(values))
    summary: dict[str, Any] = {"settings": settings, "runs": runs, "pairs": pairs}
    if recipe.attribution is not None and lines:
        summary["attribution"] = [line for name in names for line in eval_attribution.summed_up(run.folder, name)]
    if recipe.benchmarks is not None:
        summary["benchmarks"] = measured(recipe.benchmarks, names, run.folder)
    return _finite(summary)


def _finite(value: Any) -> Any:
    """The same with None for the infinite ends of an interval, which JSON can't hold."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(summary: Mapping[str, Any], console: "Console") -> None:
    """Prints a summary's tables."""
    from prism_cli.report.summary_table import (
        benchmarks_table,
        causes_table,
        differences_table,
        side_by_side,
        summary_table,
    )

    tables = [summary_table(summary)] if any(run["metrics"] for run in summary["runs"]) else []
    tables += [differences_table(summary)] if summary["pairs"] else []
    tables += [benchmarks_table(found)] if (found := summary.get("benchmarks")) else []
    tables += [causes_table(found)] if (found := summary.get("attribution")) else []
    for table in tables:
        console.print(side_by_side(table, console.width))


def read_samples(path: Path) -> Values:
    """Metric → for each question the values of its responses, from a samples file."""
    return _values(read_lines(path))


def _lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_lines(folder / f"samples-{name}.jsonl")


def _values(lines: Sequence[Mapping[str, Any]]) -> Values:
    found: Values = {}
    for kind, suffix in (("greedy", "greedy"), ("samples", "sampled")):
        responses = [responses_of(line, kind) for line in lines]
        metrics = dict.fromkeys(k for question in responses for r in question for k in r if k not in NO_METRICS)
        for metric in metrics:
            found[f"{metric}/{suffix}"] = [[r[metric] for r in question if metric in r] for question in responses]
    for name in dict.fromkeys(key for line in lines for key in line if key.startswith(TEACHER_LOGPROB)):
        found[name] = [[line[name]] if name in line else [] for line in lines]
    return found


def _all_values(lines: Sequence[Mapping[str, Any]]) -> Values:
    """Those of the samples file, and pass@k beside accuracy."""
    found = _values(lines)
    first = {metric: values for metric, values in found.items() if metric.startswith("accuracy/")}
    return first | _passes(lines) | found


def _passes(lines: Sequence[Mapping[str, Any]]) -> Values:
    """pass@1, 2, 4, 8 … of the sampled answers, as many as there are samples."""
    from prism_cli.evaluation.intervals import pass_at

    right = [[r["accuracy"] for r in responses_of(line, "samples") if "accuracy" in r] for line in lines]
    most = max(map(len, right), default=0)
    return {f"pass@{k}/sampled": pass_at(k, right) for k in (2**i for i in range(most.bit_length()))}


def _failures(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    every = [said for line in lines for kind in ("greedy", "samples") for said in responses_of(line, kind)]
    generation, judge = (sum(what in said for said in every) for what in ("failed", "unjudged"))
    return {"responses": generation + judge, "generation": generation, "llm_judge": judge}


def _metrics(values: Values) -> dict[str, Any]:
    from prism_cli.evaluation.intervals import mean_interval

    return {metric: mean_interval(found)._asdict() for metric, found in values.items() if any(found)}


def _pairs(values: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    """Paired differences b − a of every metric that both have, for every two runs."""
    from prism_cli.evaluation.intervals import paired_difference

    for a, b in combinations(values, 2):
        for metric in values[a]:
            both = (values[a][metric], values[b].get(metric, []))
            if any(x and y for x, y in zip(*both, strict=False)):
                found = paired_difference(*both)
                yield {
                    "a": a,
                    "b": b,
                    "metric": metric,
                    "difference": found.value,
                    "low": found.low,
                    "high": found.high,
                }


# Power ---------------------------------------------------------------------------------------------------------------


def power_table(folder: Path, points: float) -> "Table":
    """How many questions it takes to find a difference of accuracy, by how much questions scattered in this evaluation.

    Args:
        folder: A finished evaluation.
        points: The difference, in points of a hundred; above zero.

    Raises:
        RecipeError: it has no accuracy.
    """
    from prism_cli.evaluation.intervals import spread_of
    from prism_cli.evaluation.power import questions_needed, smallest_difference
    from prism_cli.report.summary_table import power_rows

    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    names = [run["id"] for run in summary["runs"] if (folder / f"samples-{run['id']}.jsonl").is_file()]
    values = {name: _values(_lines(folder, name)) for name in names}
    rows = []
    for metric in ("accuracy/greedy", "accuracy/sampled"):
        having = [name for name in names if sum(map(bool, values[name].get(metric, []))) > 1]
        of = list(combinations(having, 2)) or [(name,) for name in having]
        for found in of:
            spread = spread_of(*(values[name][metric] for name in found))
            # Two runs that err independently of each other: no pairing to profit from.
            deviation = spread.deviation * (1 if len(found) == 2 else 2**0.5)
            needed = questions_needed(points / 100, deviation)
            rows.append((metric, found, spread.n, deviation, needed, smallest_difference(spread.n, deviation)))
    if not rows:
        raise RecipeError(f"{folder} has no accuracy on two questions or more", "evaluate rows that have answers")
    return power_rows(rows, points)
