"""A study's table in the terminal: one row an arm, one column a metric."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from prism_cli.report.quantities import Metric, metric

# Characters a metric takes: "+0.041 ± 0.006 ✓" and the space around it.
CELL = 20


def study_table(summary: dict[str, Any], width: int) -> Group:
    """One row an arm, one column a metric: mean over seeds, and below it the difference from the baseline.

    Args:
        summary: A study's summary: its arms, baseline and seeds.
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
    for arm, values in summary["arms"].items():
        cells = [_cell(m, values["metrics"].get(m.name), arm == summary["baseline"]) for m in shown]
        table.add_row(arm, f"{values['seconds']:.0f}", *cells)
    return table


def _cell(shown: Metric, values: dict[str, Any] | None, is_baseline: bool) -> str:
    if values is None:
        return "–"
    text = shown.number(values["mean"]["value"])
    if is_baseline:
        return text
    over, scale = values["over_seeds"], shown.scale
    spread = "" if over["low"] is None else f" ± {(over['high'] - over['low']) / 2 * scale:.{shown.digits}f}"
    return f"{text}\n{over['value'] * scale:+.{shown.digits}f}{spread}{' ✓' if values['agree'] else ''}"
