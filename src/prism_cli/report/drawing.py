"""Draws curves as SVG that takes its colours from the page, and so needs no script and no library to be seen."""

import json
import math
from collections.abc import Sequence

from markupsafe import Markup

from prism_cli.report.curves import Curve

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 24
COLOURS = 8
# From so many points on a curve is drawn faint, and its running mean over it.
NOISY, WINDOW = 40, 20


def chart(curves: Sequence[Curve]) -> Markup:
    """One plot: lines for what was logged, diamonds for what was measured on rows kept aside.

    Args:
        curves: With at least one point each.
    """
    known = [y for curve in curves for y in curve.y if y is not None]
    steps = [x for curve in curves for x in curve.x]
    if not known:
        return Markup('<p class="small">No finite value.</p>')
    (low, high), (first, last) = _room(min(known), max(known)), (min(steps), max(max(steps), min(steps) + 1))

    def place(x: float, y: float) -> str:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f} {TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM):.1f}"

    drawn = []
    for value in ticks(low, high):
        y = place(first, value).split()[1]
        drawn.append(
            f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/><text x="{LEFT - 6}" y="{y}" '
            f'class="tick left">{_short(value)}</text>'
        )
    for value in ticks(first, last, 5):
        drawn.append(f'<text x="{place(value, low).split()[0]}" y="{HEIGHT - 6}" class="tick">{_short(value)}</text>')
    for number, curve in enumerate(curves):
        drawn.append(_drawn(curve, number % COLOURS, place))
    data = json.dumps(
        {"from": first, "to": last, "curves": [{"name": c.name, "x": c.x, "y": _rounded(c.y)} for c in curves]},
        separators=(",", ":"),
    )
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" data-left="{LEFT / WIDTH}" data-right="{1 - RIGHT / WIDTH}"'
    return Markup('<svg {box} role="img" aria-label="{name}" data-plot="{data}">{drawn}</svg>').format(
        box=Markup(box), name=f"Curves of {', '.join(c.name for c in curves)}", data=data, drawn=Markup("".join(drawn))
    )


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers from low to high, about as many as wanted."""
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _room(low: float, high: float) -> tuple[float, float]:
    """The range of an axis: a little more than the values take, and never nothing."""
    space = (high - low) * 0.06 or abs(high) * 0.1 or 0.1
    return low - (0 if low == 0 else space), high + space


def _drawn(curve: Curve, colour: int, place) -> str:
    points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y is not None]
    if curve.held_out or len(points) == 1:
        shape = "m-4.5 0 4.5-4.5 4.5 4.5-4.5 4.5z" if curve.held_out else "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0"
        return f'<path class="dot c{colour}" d="{"".join(f"M{place(x, y)}{shape}" for x, y in points)}"/>'
    line = (
        f'<path class="line c{colour}{" faint" if len(points) >= NOISY else ""}" d="{_path(curve.x, curve.y, place)}"/>'
    )
    if len(points) >= NOISY:
        line += f'<path class="line c{colour}" d="{_path(curve.x, _running(curve.y), place)}"/>'
    return line


def _path(x: Sequence[float], y: Sequence[float | None], place) -> str:
    pieces, begun = [], False
    for step, value in zip(x, y, strict=True):
        if value is not None:
            pieces.append(f"{'L' if begun else 'M'}{place(step, value)}")
        begun = value is not None
    return "".join(pieces)


def _running(values: Sequence[float | None]) -> list[float | None]:
    """Mean of each value and those around it; gaps stay."""
    half = max(1, len(values) // WINDOW // 2)
    made: list[float | None] = []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if v is not None]
        made.append(None if value is None else sum(near) / len(near))
    return made


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if v is None else float(f"{v:.4g}") for v in values]


def _short(value: float) -> str:
    """A tick's label: 0.25, −3, 20k, 1e−6."""
    if value and abs(value) < 1e-3:
        text = f"{value:.0e}".replace("e-0", "e-")
    elif abs(value) >= 10_000:
        text = f"{value / 1000:g}k"
    else:
        text = f"{round(value, 10):g}"
    return text.replace("-", "−")
