"""A study's arms as a table: each metric's mean over seeds, and beside it the difference from the baseline."""

from collections.abc import Mapping
from typing import Any

from prism_cli.report.quantities import Metric, is_number, metrics_of


def arms_compared(study: Mapping[str, Any]) -> tuple[list[Metric], list[tuple[str, list[dict[str, Any]]]], str]:
    """Columns, rows (name, cells with `value` and `spread`) and the words that explain them.

    Args:
        study: What study.json holds.
    """
    arms, baseline = study["arms"], study["baseline"]
    columns = metrics_of({"runs": list(arms.values())})
    rows = [
        (
            f"{name}, {found['seconds']:.0f} s",
            [_cell(column, found["metrics"].get(column.name), name == baseline) for column in columns],
        )
        for name, found in arms.items()
    ]
    told = (
        f"Means over {len(study['seeds'])} seeds. Beside them the difference from {baseline}, seed by seed, ± its 95 % "
        "interval over seeds; ✓ where every seed agrees beyond its own interval over questions. Seconds are an arm's "
        "own training, a seed."
    )
    return columns, rows, told


def _cell(shown: Metric, found: Mapping[str, Any] | None, is_baseline: bool) -> dict[str, Any]:
    if found is None:
        return {"value": "–", "spread": "", "n": None, "best": False}
    return {
        "value": shown.number(found["mean"]["value"]),
        "spread": "" if is_baseline else _difference(shown, found),
        "n": None,
        "best": False,
    }


def _difference(shown: Metric, found: Mapping[str, Any]) -> str:
    over = found["over_seeds"]
    number = shown.number(over["value"])
    text = number if number.startswith("−") else f"+{number}"
    if is_number(over["low"]) and is_number(over["high"]):
        text += f" ± {shown.number((over['high'] - over['low']) / 2)}"
    return f"{text}{' ✓' if found['agree'] else ''}"
