"""An evaluation's summary as tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.markup import escape, render
from rich.table import Table

from prism_cli.report.quantities import Metric, clear_winner, is_number, metric, metrics_of, spread

# The same as the mean of sampled accuracy, so it stands in summary.json only.
REPEATED = "pass@1/sampled"
# Between two columns, and at the edge.
GAP = 3


def summary_table(summary: Mapping[str, Any]) -> Table:
    """One column a run, one row a metric, greedy beside sampled; shares in points with their interval.

    A value is bold only where its interval lies apart from every other run's.

    Args:
        summary: What summary.json holds.
    """
    runs = summary.get("runs", [])
    table = _table("", [run["id"] for run in runs], _caption(summary))
    for shown in metrics_of(summary):
        if shown.name == REPEATED:
            continue
        cells = [run["metrics"].get(shown.name) for run in runs]
        winner = clear_winner(shown, cells)
        table.add_row(_name(shown), *(_cell(shown, cell, place == winner) for place, cell in enumerate(cells)))
    return table


def differences_table(summary: Mapping[str, Any]) -> Table:
    """The table of each run's difference from the first, question by question, and where it is within noise.

    Args:
        summary: What summary.json holds.
    """
    first = summary["runs"][0]["id"]
    compared = [pair for pair in summary["pairs"] if pair["a"] == first and pair["metric"] != REPEATED]
    pairs = {(pair["b"], pair["metric"]): pair for pair in compared}
    others = list(dict.fromkeys(b for b, _ in pairs))
    count = len(pairs)
    by_chance = f"; of {count} comparisons about {count / 20:.0f} look clear by chance" if count >= 20 else ""
    table = _table(
        f"minus {first}", others, f"paired by question, ± the 95 % interval of each comparison alone{by_chance}"
    )
    for shown in metrics_of(summary):
        cells = [pairs.get((other, shown.name)) for other in others]
        if any(cells):
            table.add_row(_name(shown), *(_difference(shown, cell) for cell in cells))
    return table


def benchmarks_table(scores: Sequence[Mapping[str, Any]]) -> Table:
    """One column a run, one row a benchmark's metric; shares in points with their interval.

    Args:
        scores: The summary's `benchmarks`.
    """
    runs = list(dict.fromkeys(one["run"] for one in scores))
    table = _table("benchmark", runs, "shares in points, with the 95 % interval over questions")
    cells = {(one["task"], one["metric"], one["run"]): one for one in scores}
    for task, name in dict.fromkeys((one["task"], one["metric"]) for one in scores):
        shown = Metric(name, name, "", 100.0, "points", 1, 1)
        table.add_row(
            f"{escape(task)}[dim], {escape(name)}[/dim]",
            *(_benchmark(shown, cells.get((task, name, run))) for run in runs),
        )
    return table


def power_rows(rows: Sequence[tuple[str, Sequence[str], int, float, int, float]], points: float) -> Table:
    """The table of the questions that a difference takes.

    Args:
        rows: Metric, the runs it was measured on (one or two), questions, deviation of a question's difference,
            questions needed, smallest difference that the questions there are can find.
        points: The difference to be found.
    """
    alone = any(len(runs) == 1 for _, runs, *_ in rows)
    assumed = "; of one run: as if the other erred independently of it, which takes more" * alone
    table = _table(
        "accuracy",
        ["needed", "here", "which find", "deviation"],
        f"80 % power, 5 % level, two-sided, same samples a question{assumed}",
    )
    table.title = f"questions for a difference of {points:g} points"
    for name, runs, questions, deviation, needed, smallest in rows:
        shown = metric(name)
        same = "" if deviation else ": no question differs"
        what = f"{shown.decoding}[dim], {escape(' and '.join(runs))}{same}[/dim]"
        numbers = (
            f"{needed:,}" if deviation else "–",
            f"{questions:,}",
            f"{shown.number(smallest)} points",
            shown.number(deviation),
        )
        table.add_row(what, *numbers)
    return table


def causes_table(shares: Sequence[Mapping[str, Any]]) -> Table:
    """Causes as shares of wrong answers: a column a run, or a data source of it.

    Args:
        shares: The summary's `attribution`.
    """
    heads = [f"{one['run']}, {one['source'] or one['decoding']}" for one in shares]
    table = _table("wrong because of", heads, "share of wrong answers in points, with the 95 % interval")
    table.add_row("[dim]wrong answers[/dim]", *(str(one["wrong"]) for one in shares))
    for cause in shares[0]["causes"] if shares else ():
        cells = [one["causes"][cause] for one in shares]
        if any(cell["value"] for cell in cells):
            shown = Metric(cause, cause, "", 100.0, "points", 1, 0)
            table.add_row(cause, *(_cell(shown, cell) for cell in cells))
    return table


def side_by_side(table: Table, width: int) -> Group:
    """The table as it is, or as several, one below the other, where its columns don't fit beside each other.

    Args:
        table: Its first column names the rows.
        width: Characters there are.
    """
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    sizes = [max(cell_len(render(text).plain) for text in column) + GAP for column in columns]
    parts: list[list[int]] = []
    for place in range(1, len(columns)):
        if not parts or sum(sizes[i] for i in (0, *parts[-1], place)) > width:
            parts.append([])
        parts[-1].append(place)
    if len(parts) < 2:
        return Group(table)
    tables = []
    for part in parts:
        names, *rows = zip(*(columns[i] for i in (0, *part)), strict=True)
        tables.append(_empty(names, table.caption if part is parts[-1] else None))
        for row in rows:
            tables[-1].add_row(*row)
    return Group(*tables)


def _table(corner: str, columns: Sequence[object], caption: str | None) -> Table:
    return _empty([escape(str(column)) for column in (corner, *columns)], caption)


def _empty(heads: Sequence[str], caption: Any) -> Table:
    table = Table(*heads, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _name(shown: Metric) -> str:
    return f"{escape(shown.quantity)}[dim]{f', {shown.decoding}' if shown.decoding else ''}[/dim]"


def _cell(shown: Metric, cell: Mapping[str, Any] | None, best: bool = False) -> str:
    if not cell or not is_number(cell.get("value")):
        return "–"
    interval = spread(shown, cell)
    interval = interval if "−" in interval else interval.replace(" to ", "–")
    text = f"{shown.number(cell['value'])} {interval}".strip()
    return f"[bold]{text}[/bold]" if best else text


def _difference(shown: Metric, pair: Mapping[str, Any] | None) -> str:
    if pair is None or not is_number(pair["difference"]):
        return "–"
    text = _cell(shown, {**pair, "value": pair["difference"]})
    sign = "+" if pair["difference"] > 0 else ""
    clear = is_number(pair["low"]) and is_number(pair["high"]) and not pair["low"] <= 0 <= pair["high"]
    return f"{sign}{text}" if clear else f"[dim]{sign}{text} within noise[/dim]"


def _benchmark(shown: Metric, cell: Mapping[str, Any] | None) -> str:
    failed = f" [yellow]{cell['failed']} failed[/yellow]" if cell and cell.get("failed") else ""
    return f"{_cell(shown, cell)}{failed}"


def _caption(summary: Mapping[str, Any]) -> str | None:
    counts = {cell["n"] for run in summary.get("runs", []) for cell in run["metrics"].values() if "n" in cell}
    if not counts:
        return None
    low, high = min(counts), max(counts)
    failed = sum((run.get("failed") or {}).get("responses", 0) for run in summary["runs"])
    left_out = f"; {failed} failed, left out of every metric" if failed else ""
    return f"{low if low == high else f'{low} to {high}'} questions; shares in points, with the 95 % interval{left_out}"
