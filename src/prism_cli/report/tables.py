"""The tables of the page: what was measured of each run, and paired with it the difference from the run before."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prism_cli.report.quantities import Metric, clear_winner, is_number, metrics_of, spread


class Cell(NamedTuple):
    """One value.

    Attributes:
        value: As text.
        spread: Its interval.
        n: Questions it comes from, or None.
        best: Whether its interval lies apart from every other run's.
        change: The paired difference from the run before, with its interval; "" where there is none.
        kind: "better", "worse", "changed" or "noise", of the change.
    """

    value: str
    spread: str = ""
    n: Any = None
    best: bool = False
    change: str = ""
    kind: str = ""


class Column(NamedTuple):
    """A run, and the one its differences are taken from ("" for none)."""

    name: str
    before: str


class Line(NamedTuple):
    """One metric over all runs."""

    shown: Metric
    cells: list[Cell]


class Table(NamedTuple):
    """Metrics down, runs across.

    Attributes:
        id: The step that measured.
        columns: The runs.
        lines: The metrics.
        caption: Below it.
    """

    id: str
    columns: list[Column]
    lines: list[Line]
    caption: str


def comparison(
    id: str, summary: Mapping[str, Any], before: Mapping[str, str], wanted: Callable[[Metric], bool]
) -> Table | None:
    """The table of one evaluation's runs; None where it has none of the wanted metrics.

    Args:
        id: Its step.
        summary: What summary.json or drift.json holds.
        before: Run → the run it started from, as far as is known.
        wanted: Which metrics.
    """
    runs = [run for run in summary.get("runs") or () if isinstance(run, Mapping)]
    names = [str(run.get("id", "–")) for run in runs]
    # pass@1 is the mean of sampled accuracy again.
    shown = [one for one in metrics_of({"runs": runs}) if wanted(one) and one.name != "pass@1/sampled"]
    if not shown:
        return None
    pairs = {(p.get("a"), p.get("b"), p.get("metric")): p for p in summary.get("pairs") or ()}
    columns = [Column(name, run_before(name, names, before)) for name in names]
    lines = []
    for one in shown:
        values = [measured(run, one) for run in runs]
        winner = clear_winner(one, values)
        changes = [change(one, pairs, column) for column in columns]
        lines.append(Line(one, [cell(one, f, i == winner, *changes[i]) for i, f in enumerate(values)]))
    settings = summary.get("settings") or {}
    caption = "Bold: its interval lies apart from every other run's." if len(names) > 1 else ""
    if pairs:
        caption += (
            " Below a value: the difference from the run named above it, question by question, with its interval."
        )
    if plain := [f"{k.replace('_', ' ')} {v}" for k, v in settings.items() if isinstance(v, int | float | str)]:
        caption += f" Settings: {', '.join(plain)}."
    return Table(id, columns, lines, caption.strip())


def run_before(name: str, names: Sequence[str], before: Mapping[str, str]) -> str:
    """The run to compare one with: the nearest it goes back to, the one in front where nothing is known; "" for none.

    Args:
        name: Which run.
        names: All that were measured, in order.
        before: Run → the run it started from, as far as is known.
    """
    seen = {name}
    start = before.get(name)
    while start is not None and start not in seen:
        if start in names:
            return start
        seen.add(start)
        start = before.get(start)
    place = names.index(name)
    return names[place - 1] if place and not before else ""


def cell(shown: Metric, result: Mapping[str, Any] | None, best: bool = False, change: str = "", kind: str = "") -> Cell:
    """A value with its interval, or a dash."""
    if not result or not is_number(result.get("value")):
        return Cell("–")
    return Cell(shown.number(result["value"]), spread(shown, result), result.get("n"), best, change, kind)


def difference(shown: Metric, result: Mapping[str, Any]) -> tuple[str, str]:
    """A difference with its interval in words, and what it says: better, worse, changed or noise.

    Args:
        shown: Of which metric.
        result: `value` (or `difference`), `low`, `high`.
    """
    value = result.get("difference", result.get("value"))
    low, high = result.get("low"), result.get("high")
    if not is_number(value):
        return "", ""
    number = shown.number(value)
    text = number if number.startswith("−") else f"+{number}"
    if not (is_number(low) and is_number(high)):
        return text, "noise"
    text += f" {spread(shown, {'value': value, 'low': low, 'high': high})}".replace(" ±", " ± ")
    if low <= 0 <= high:
        return text, "noise"
    return text, "changed" if shown.better == 0 else "better" if (value > 0) == (shown.better > 0) else "worse"


def change(shown: Metric, pairs: Mapping[tuple, Mapping[str, Any]], column: Column) -> tuple[str, str]:
    if pair := pairs.get((column.before, column.name, shown.name)):
        return difference(shown, pair)
    if pair := pairs.get((column.name, column.before, shown.name)):
        ends = [-pair[key] if is_number(pair.get(key)) else None for key in ("difference", "high", "low")]
        return difference(shown, dict(zip(("difference", "low", "high"), ends, strict=True)))
    return "", ""


def measured(run: Mapping[str, Any], shown: Metric) -> Mapping[str, Any] | None:
    result = (run.get("metrics") or {}).get(shown.name)
    return result if isinstance(result, Mapping) else None


# Benchmarks -----------------------------------------------------------------------------------------------------------


def benchmarks(id: str, scores: Sequence[Any]) -> Table | None:
    """Published benchmarks, a row a task and metric, a column a run.

    Args:
        id: The step that measured.
        scores: `summary["benchmarks"]`.
    """
    measured = [one for one in scores if isinstance(one, Mapping)]
    names = list(dict.fromkeys(str(one.get("run", "–")) for one in measured))
    rows: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for one in measured:
        rows.setdefault((str(one.get("task", "–")), str(one.get("metric") or "")), {})[str(one.get("run", "–"))] = one
    lines = []
    for (task, name), by_run in rows.items():
        shown = Metric(f"{task}/{name}", task, name, 100.0, "points", 1, 1)
        cells = [by_run.get(run) for run in names]
        winner = clear_winner(shown, cells)
        lines.append(Line(shown, [_scored(shown, score, i == winner) for i, score in enumerate(cells)]))
    caption = "Each with its 95 % interval over questions. Bold: it lies apart from every other run's."
    return Table(id, [Column(name, "") for name in names], lines, caption) if lines else None


def _scored(shown: Metric, score: Mapping[str, Any] | None, best: bool) -> Cell:
    if score is None:
        return Cell("–")
    scored = cell(shown, {**score, "n": score.get("questions")}, best)
    failed = score.get("failed")
    return scored._replace(change=f"{failed} failed", kind="worse") if failed else scored
