"""An evaluation's summary as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from prism_cli.report.quantities import Metric, clear_winner, is_number, metrics_of, spread


def summary_table(summary: Mapping[str, Any]) -> Table:
    """One row a run, one column a metric, first all greedy, then all sampled; shares in points with their interval.

    A value is bold only where its interval lies apart from every other run's.

    Args:
        summary: What summary.json holds.
    """
    runs = summary.get("runs", [])
    table = Table("run", caption=_caption(summary))
    columns = sorted(metrics_of(summary), key=lambda shown: ("greedy", "sampled", "").index(shown.decoding))
    for shown in columns:
        table.add_column(f"{escape(shown.quantity)}\n[dim]{shown.decoding or shown.unit}[/dim]", justify="right")
    winners = {shown: clear_winner(shown, [run["metrics"].get(shown.name) for run in runs]) for shown in columns}
    for place, run in enumerate(runs):
        cells = [_cell(shown, run["metrics"].get(shown.name), winners[shown] == place) for shown in columns]
        table.add_row(escape(str(run["id"])), *cells)
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
    return f"{low if low == high else f'{low} to {high}'} questions; ± is the interval, clustered by question"
