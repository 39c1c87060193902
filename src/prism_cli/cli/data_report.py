"""The report of `prism data check`: problems a line each and a summary, or JSON."""

from collections import Counter
from collections.abc import Iterator
from math import ceil
from statistics import median
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

PRINTED = 200
BINS, BAR = 8, 24


def print_report(report: Any) -> None:
    """Prints the first problems, a line each, and the summary.

    Args:
        report: A `data.survey.Report`.
    """
    for problem in report.problems[:PRINTED]:
        typer.echo(f"{problem}{'' if problem.severity == 'error' else '  (warning)'}")
    if len(report.problems) > PRINTED:
        typer.echo(f"… and {len(report.problems) - PRINTED} more; --json prints all")
    from prism_cli.data.formats import printable

    title = Text(f"prism data check {printable(report.source)}")
    table = Table(title=title, title_justify="left", show_header=False)
    for what, found in _summary(report):
        table.add_row(Text(what), Text(found))
    Console().print(table)


def _summary(report: Any) -> Iterator[tuple[str, str]]:
    yield "format", ", ".join(dict.fromkeys(report.formats.values())) or "unknown"
    yield "rows", str(report.rows)
    yield "usable", str(report.rows - len(report.unusable))
    for severity in ("error", "warning"):
        yield f"{severity}s", "\n".join(f"{n} × {kind}" for kind, n in report.by_kind(severity).most_common()) or "none"
    if report.sizes:
        encodings = ", ".join(f"{n} {name}" for name, n in report.encodings.most_common())
        yield "pictures", f"{report.sizes.total()}: {encodings}\n{_size_range(report.sizes)}"
    if report.lengths:
        spread = _spread(report.lengths)
        words = ", ".join(f"{name} {value}" for name, value in spread.items())
        bars = [
            f"{low:>6}–{high:<6} {'█' * ceil(n / most * BAR):{BAR}} {n}" for low, high, n, most in _bars(report.lengths)
        ]
        yield "tokens", "\n".join((words, *bars))


def report_values(report: Any) -> dict[str, Any]:
    """The whole report as values that JSON can hold.

    Args:
        report: A `data.survey.Report`.
    """
    return {
        "source": report.source,
        "formats": report.formats,
        "rows": report.rows,
        "usable": report.rows - len(report.unusable),
        "errors": dict(report.by_kind("error")),
        "warnings": dict(report.by_kind("warning")),
        "pictures": {
            "count": report.sizes.total(),
            "encodings": dict(report.encodings),
            "sizes": [{"width": w, "height": h, "count": n} for (w, h), n in report.sizes.most_common()],
        },
        "tokens": {**_spread(report.lengths), "histogram": [bar[:3] for bar in _bars(report.lengths)]}
        if report.lengths
        else None,
        "problems": [problem._asdict() for problem in report.problems],
    }


def _spread(lengths: list[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    return {"median": round(median(ordered)), "p95": ordered[ceil(0.95 * len(ordered)) - 1], "max": ordered[-1]}


def _bars(lengths: list[int]) -> list[tuple[int, int, int, int]]:
    """Bins of equal width: lowest and highest length, how many rows, how many the fullest has."""
    low, width = min(lengths), (max(lengths) - min(lengths)) // BINS + 1
    counts = Counter((length - low) // width for length in lengths)
    most = max(counts.values())
    return [(low + b * width, low + (b + 1) * width - 1, counts[b], most) for b in range(max(counts) + 1)]


def _size_range(sizes: Counter[tuple[int, int]]) -> str:
    shown = [f"{width} × {height}" for width, height in (f(sizes, key=lambda s: s[0] * s[1]) for f in (min, max))]
    return (
        f"all {shown[0]}"
        if len(sizes) == 1
        else f"{shown[0]} to {shown[1]}, most often " + ("{} × {}".format(*sizes.most_common(1)[0][0]))
    )
