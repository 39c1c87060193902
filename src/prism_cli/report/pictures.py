"""Pictures of values with their intervals, and the gain of the last run in large."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from prism_cli.report.quantities import Metric, is_number, metric, metrics_of
from prism_cli.report.tables import Cell, Column, cell, change, measured


class Bar(NamedTuple):
    """One line of a picture of intervals, places in percent of its width.

    Attributes:
        label: Whose.
        cell: The value in words.
        at: Where the value lies.
        low: Where its interval begins.
        high: Where it ends.
        cut: "left", "right" or both: where the interval goes on beyond the picture.
    """

    label: str
    cell: Cell
    at: float
    low: float
    high: float
    cut: str = ""


class Forest(NamedTuple):
    """Values with their intervals above each other, on one scale.

    Attributes:
        title: What they are.
        bars: Top to bottom.
        zero: Where the line to compare with stands in percent, or None.
        ends: The scale's ends in words.
    """

    title: str
    bars: list[Bar]
    zero: float | None
    ends: tuple[str, str]


def forest(
    shown: Metric, title: str, rows: Sequence[tuple[str, Mapping[str, Any], Cell]], line: float | None = None
) -> Forest | None:
    """The picture of some values; None without any.

    Args:
        shown: Of which metric.
        title: Above it.
        rows: (label, `value`/`low`/`high`, the same in words).
        line: What they are compared with, or None.
    """
    known = [row for row in rows if is_number(row[1].get("value"))]
    if not known:
        return None
    spans = [_span(interval) for _, interval, _ in known]
    low, high = _scale([interval["value"] for _, interval, _ in known] + ([] if line is None else [line]), spans)
    space = (high - low) * 0.04 or 0.01

    def place(value: float) -> float:
        return round(100 * (value - low + space) / (high - low + 2 * space), 2)

    bars = []
    for (label, interval, shown_cell), (begin, end) in zip(known, spans, strict=True):
        cut = " ".join(side for side, is_cut in (("left", begin < low), ("right", end > high)) if is_cut)
        bars.append(
            Bar(label, shown_cell, place(interval["value"]), place(max(begin, low)), place(min(end, high)), cut)
        )
    return Forest(title, bars, None if line is None else place(line), (shown.number(low), shown.number(high)))


def _span(interval: Mapping[str, Any]) -> tuple[float, float]:
    sure = is_number(interval.get("low")) and is_number(interval.get("high"))
    return (interval["low"], interval["high"]) if sure else (interval["value"], interval["value"])


def _scale(values: Sequence[float], spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Holds every value; an interval far wider than the others is cut, or it alone would be seen."""
    low, high = min(values), max(values)
    room = max(high - low, 1.5 * median(end - begin for begin, end in spans))
    ends = [end for span in spans for end in span] + [low, high]
    return max(min(ends), low - room), min(max(ends), high + room)


def pictures(summary: Mapping[str, Any], wanted: Callable[[Metric], bool]) -> list[Forest]:
    """One picture a metric, a line a run.

    Args:
        summary: What summary.json or drift.json holds.
        wanted: Which metrics.
    """
    runs = [run for run in summary.get("runs") or () if isinstance(run, Mapping)]
    made = []
    for shown in filter(wanted, metrics_of({"runs": runs})):
        value = [(str(run.get("id", "–")), measured(run, shown)) for run in runs]
        rows = [(name, one, cell(shown, one)) for name, one in value if one]
        title = f"{shown.words}, {shown.unit}" if shown.unit else shown.words
        made.append(forest(shown, title, rows))
    return [one for one in made if one and len(one.bars) > 1]


def drift_picture(summary: Mapping[str, Any]) -> Forest | None:
    """The picture of drift, part by part and run by run, beside 0.5, where nothing tells policy from teacher.

    Args:
        summary: What drift.json holds.
    """
    rows, shown = [], metric("drift")
    for run in summary.get("runs") or ():
        for name, value in (run.get("metrics") or {}).items() if isinstance(run, Mapping) else ():
            if name.startswith("drift/") and isinstance(value, Mapping):
                rows.append((f"{run.get('id')}, {name.removeprefix('drift/')}", value, cell(shown, value)))
    return forest(shown, "Drift from the teacher; the line: can't be told apart", rows, 0.5)


class Tile(NamedTuple):
    """The gain of the last run over the first, in large."""

    name: str
    value: str
    change: str
    kind: str
    runs: str


TILES = ("accuracy/sampled", "accuracy/greedy", "perception/sampled", "reasoning/sampled")


def tiles(summary: Mapping[str, Any]) -> list[Tile]:
    """The last run beside the first one, in up to four numbers."""
    runs = [run for run in summary.get("runs") or () if isinstance(run, Mapping)]
    made = []
    for name in TILES:
        shown = metric(name)
        value = measured(runs[-1], shown) if runs else None
        if value is None or not is_number(value.get("value")):
            continue
        first, last = str(runs[0].get("id")), str(runs[-1].get("id"))
        pairs = {(p.get("a"), p.get("b"), p.get("metric")): p for p in summary.get("pairs") or ()}
        gain, kind = change(shown, pairs, Column(last, first))
        names = f"{first} → {last}" if gain else last
        percent = " %" if shown.unit == "points" else ""
        made.append(Tile(shown.words, f"{shown.number(value['value'])}{percent}", gain, kind, names))
    return made
