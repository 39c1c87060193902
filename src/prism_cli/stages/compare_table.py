"""What a study found: each arm's metrics over seeds and their paired differences from the baseline."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from prism_cli.evaluation.intervals import mean_interval, paired_difference
from prism_cli.recipes.pipelines import StudyRecipe
from prism_cli.report.quantities import Metric, metric
from prism_cli.runs.references import read_manifest
from prism_cli.stages.eval import read_samples

# Characters a metric takes: "+0.041 ± 0.006 ✓" and the space around it.
CELL = 20

Values = dict[str, list[list[float]]]


def study_summary(recipe: StudyRecipe, folder: Path) -> dict[str, Any]:
    """Every arm beside the baseline, over the seeds that finished both.

    Per metric: the mean over seeds with its interval, and the difference from the baseline: seed by seed with an
    interval over questions, and its mean with an interval over seeds. `agree` says that every seed's interval lies on
    the same side of zero.
    """
    measured = {seed: _measured(recipe, folder / f"seed-{seed}") for seed in recipe.seeds}
    arms = {}
    for arm in recipe.arms:
        seeds = [seed for seed in recipe.seeds if arm in measured[seed] and recipe.baseline in measured[seed]]
        if not seeds:
            continue
        pairs = [(measured[seed][recipe.baseline], measured[seed][arm]) for seed in seeds]
        names = [
            name for name in recipe.metrics or pairs[0][1] if all(name in values for pair in pairs for values in pair)
        ]
        arms[arm] = {
            "seeds": seeds,
            "metrics": {name: _metric([(base[name], values[name]) for base, values in pairs]) for name in names},
            "seconds": sum(_seconds(recipe, folder / f"seed-{seed}", arm) for seed in seeds) / len(seeds),
            "teacher": _teacher(folder, seeds, arm),
        }
    return {"study": recipe.name, "baseline": recipe.baseline, "seeds": list(recipe.seeds), "arms": arms}


def study_table(summary: dict[str, Any], width: int) -> Group:
    """One row an arm, one column a metric: mean over seeds, and below it the difference from the baseline.

    Args:
        summary: From `study_summary`.
        width: Characters there are; metrics that don't fit beside the others stand in a table below.
    """
    arms = summary["arms"]
    named = [metric(name) for name in (next(iter(arms.values()))["metrics"] if arms else {})]
    fitting = max(1, (width - 4 - max(map(len, arms), default=0)) // CELL)
    tables = [_table(summary, named[i : i + fitting]) for i in range(0, len(named), fitting)]
    caption = (
        f"{len(summary['seeds'])} seeds; shares in points; below: the difference from {summary['baseline']} ± its 95 % "
        "interval over seeds, ✓ when every seed agrees beyond its own interval"
    )
    return Group(*tables, caption)


def _table(summary: dict[str, Any], shown: Sequence[Metric]) -> Table:
    heads = [f"{m.quantity}{f', {m.decoding}' if m.decoding else ''}" for m in shown]
    table = Table("arm", "seconds", box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, max_width=CELL - 2)
    for arm, found in summary["arms"].items():
        cells = [_cell(m, found["metrics"].get(m.name), arm == summary["baseline"]) for m in shown]
        table.add_row(arm, f"{found['seconds']:.0f}", *cells)
    return table


def _cell(shown: Metric, found: dict[str, Any] | None, is_baseline: bool) -> str:
    if found is None:
        return "–"
    text = shown.number(found["mean"]["value"])
    if is_baseline:
        return text
    over, scale = found["over_seeds"], shown.scale
    spread = "" if over["low"] is None else f" ± {(over['high'] - over['low']) / 2 * scale:.{shown.digits}f}"
    return f"{text}\n{over['value'] * scale:+.{shown.digits}f}{spread}{' ✓' if found['agree'] else ''}"


def _measured(recipe: StudyRecipe, folder: Path) -> dict[str, Values]:
    """Arm → what its finished evaluation of one seed found."""
    found = {}
    for arm in recipe.arms:
        place = folder / arm / (recipe.measure.id or recipe.measure.stage)
        if (place / "run.json").is_file() and read_manifest(place)["status"] == "finished":
            (samples,) = place.glob("samples-*.jsonl")
            found[arm] = read_samples(samples)
    return found


def _metric(pairs: list[tuple[list[list[float]], list[list[float]]]]) -> dict[str, Any]:
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


def _seconds(recipe: StudyRecipe, folder: Path, arm: str) -> float:
    """Seconds of an arm's training steps, with those of the steps it starts from beyond the shared ones and of the
    shared warm-ups whose discriminators it takes."""
    warmups = {step.discriminator for step in recipe.arms[arm]} & {step.id or step.stage for step in recipe.shared}
    paths = [*(folder / arm).glob("*/run.json"), *(folder / str(id) / "run.json" for id in warmups)]
    manifests = [read_manifest(path.parent) for path in paths]
    own = sum(manifest.get("seconds", 0.0) for manifest in manifests if manifest["stage"] != "eval")
    return own + sum(_seconds(recipe, folder, other) for other in recipe.arms_before(arm))


def _teacher(folder: Path, seeds: list[int], arm: str) -> dict[str, float]:
    """Calls and dollars of an arm's own training steps, over all seeds."""
    usages = [
        json.loads(path.read_text(encoding="utf-8"))
        for seed in seeds
        for path in (folder / f"seed-{seed}" / arm).glob("*/teacher.json")
        if read_manifest(path.parent)["stage"] != "eval"
    ]
    return {name: sum(usage.get(name) or 0 for usage in usages) for name in ("calls", "usd")}
