"""An evaluation's summary as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from prism_cli.report.quantities import Metric, clear_winner, is_number, metrics_of, spread


def summary_table(summary: Mapping[str, Any]) -> Table:
    """One column a run, one row a metric, greedy beside sampled; shares in points with their interval.

    A value is bold only where its interval lies apart from every other run's.

    Args:
        summary: What summary.json holds.
    """
    runs = summary.get("runs", [])
    table = Table("", *(escape(str(run["id"])) for run in runs), caption=_caption(summary), box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for shown in metrics_of(summary):
        cells = [run["metrics"].get(shown.name) for run in runs]
        winner = clear_winner(shown, cells)
        name = f"{escape(shown.quantity)}[dim]{f', {shown.decoding}' if shown.decoding else ''}[/dim]"
        table.add_row(name, *(_cell(shown, cell, place == winner) for place, cell in enumerate(cells)))
    return table


def _cell(shown: Metric, cell: Mapping[str, Any] | None, best: bool) -> str:
    if not cell or not is_number(cell.get("value")):
        return "–"
    text = f"{shown.number(cell['value'])} {spread(shown, cell)}".strip()
    return f"[bold]{text}[/bold]" if best else text


def _caption(summary: Mapping[str, Any]) -> str | None:
    counts = {cell["n"] for run in summary.get("runs", []) for cell in run["metrics"].values() if "n" in cell}
    if not counts:
        return None
    low, high = min(counts), max(counts)
    return f"{low if low == high else f'{low} to {high}'} questions; shares in points, ± the 95 % interval"
