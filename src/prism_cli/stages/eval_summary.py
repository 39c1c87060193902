"""The summary of `prism eval`: its file, its tables, and the power of an evaluation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_cli.errors import RecipeError
from prism_cli.evaluation.causes import cause_shares
from prism_cli.evaluation.summary import (
    failures_of,
    metrics_of,
    pairs_of,
    power_of,
    read_samples,
    samples_file,
    values_with_passes,
    without_infinities,
)
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.runs.files import read_lines
from prism_cli.runs.folder import Run
from prism_cli.runs.references import read_manifest, resolve_model
from prism_cli.stages.eval_benchmarks import measured

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SUMMARY = "summary.json"


def summed_up(recipe: EvalRecipe, names: Mapping[str, str], run: Run) -> dict[str, Any]:
    """The content of summary.json: settings, every metric of every run, paired differences, causes, benchmarks.

    Args:
        recipe: The evaluation.
        names: Evaluated run → where it is.
        run: The evaluation's folder.
    """
    lines = {name: read_lines(samples_file(run.folder, name)) for name in names} if recipe.data is not None else {}
    values = {name: values_with_passes(of_run) for name, of_run in lines.items()}
    settings = {
        "questions": len(next(iter(lines.values()), [])),
        "samples": recipe.samples,
        "temperature": recipe.temperature,
        "max_response_tokens": recipe.max_response_tokens,
        "seed": recipe.seed,
        "backends": run.manifest.get("backends", {}),
    }
    failures = {name: failures_of(of_run) for name, of_run in lines.items()}
    counted = any(count["responses"] for count in failures.values())
    runs = []
    for name, reference in names.items():
        source = Path(resolve_model(reference)[1]["run"])
        one = {"id": name, "path": str(source), "stage": read_manifest(source)["stage"]}
        metrics = metrics_of(values.get(name, {}))
        if counted:
            metrics["failed"] = {"value": failures[name]["responses"], "low": None, "high": None, "n": len(lines[name])}
        runs.append(one | {"metrics": metrics} | ({"failed": failures[name]} if name in failures else {}))
    summary: dict[str, Any] = {"settings": settings, "runs": runs, "pairs": list(pairs_of(values))}
    if recipe.attribution is not None and lines:
        summary["attribution"] = [share for name in names for share in cause_shares(run.folder, name)]
    if recipe.benchmarks is not None:
        summary["benchmarks"] = measured(recipe.benchmarks, names, run.folder)
    return without_infinities(summary)


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
    tables += [benchmarks_table(scores)] if (scores := summary.get("benchmarks")) else []
    tables += [causes_table(shares)] if (shares := summary.get("attribution")) else []
    for table in tables:
        console.print(side_by_side(table, console.width))


def power_table(folder: Path, points: float) -> "Table":
    """The questions it takes to find a difference of accuracy, by how much questions scattered in this evaluation.

    Args:
        folder: A finished evaluation.
        points: The difference, in points of a hundred; above zero.

    Raises:
        RecipeError: it has no accuracy.
    """
    from prism_cli.report.summary_table import power_rows

    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    paths = {run["id"]: samples_file(folder, run["id"]) for run in summary["runs"]}
    rows = power_of({name: read_samples(path) for name, path in paths.items() if path.is_file()}, points / 100)
    if not rows:
        raise RecipeError(f"{folder} has no accuracy on two questions or more", "evaluate rows that have answers")
    return power_rows(rows, points)
