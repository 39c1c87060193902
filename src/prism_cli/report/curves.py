"""Learning curves: which metrics of metrics.jsonl go into which plot, as plain plotly.js figures."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prism_cli.report.quantities import is_number

# First match wins; what matches none goes to a folded plot of its room.
_GROUPS = {
    "Loss": r"(?:policy/)?loss",
    "Reward": r"rewards?(?:/.*)?",
    "Accuracy": r"accuracy(?:/.*)?|mean_token_accuracy",
    "Discriminator accuracy: teacher above policy": r"discriminator/accuracy/.*",
    "Discriminator loss": r"discriminator/loss(?:/.*)?",
    "Drift from the teacher: 0.5 can't be told apart": r"drift/.*",
    "Entropy, nats a token": r"entropy",
    "Groups whose rewards are all equal": r"frac_reward_zero_std",
    "Dynamic sampling: groups a step, rounds": r"sampling/(?:kept|dropped_\w+|unused|rounds)",
    "Well-formed share": r".*(?:malformed_fraction|well_formed.*)",
    "Response length, tokens": r"completions/mean_length|(?:responses/)?length(?:/.*)?",
}
HELD_OUT = r"eval/|held_out/"  # what a training run measured on rows, and a warm-up on pairs, kept aside
_COLOURS = ("#4a90d9", "#e08a2e", "#3fa37c", "#b26bc4", "#d9605a", "#9a8f2f", "#5aa5b8", "#c96f9b")
_INK, _GRID = "#808790", "rgba(128,135,144,0.22)"  # legible on white and on near-black


class Plot(NamedTuple):
    """One plot.

    Attributes:
        title: Its heading.
        figure: A plotly.js figure (data and layout).
        folded: Whether it stands behind "more".
    """

    title: str
    figure: dict[str, Any]
    folded: bool


def plots(rows: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """The plots of one step, the important ones first.

    Args:
        rows: The lines of metrics.jsonl.
    """
    grouped: dict[str, list[str]] = {title: [] for title in _GROUPS}
    names = dict.fromkeys(name for row in rows for name, value in row.items() if is_number(value))
    for name in names:
        if name not in ("step", "seconds", "epoch"):
            grouped.setdefault(_group(name), []).append(name)
    made = []
    for title, members in grouped.items():
        series = [one for i, name in enumerate(members) if (one := _series(name, rows, _COLOURS[i % len(_COLOURS)]))]
        if series:
            made.append(Plot(title, {"data": series, "layout": _layout(len(series))}, title not in _GROUPS))
    return made


def _group(name: str) -> str:
    plain = re.sub(HELD_OUT, "", name)
    found = next((title for title, pattern in _GROUPS.items() if re.fullmatch(pattern, plain)), None)
    return found or (plain.split("/")[0] if "/" in plain else "other")


def _series(name: str, rows: Sequence[Mapping[str, Any]], colour: str) -> dict[str, Any] | None:
    """One curve: training metrics as lines, evaluation as markers; what is not finite leaves a gap."""
    points = [(row["step"], row[name]) for row in rows if name in row and is_number(row.get("step"))]
    if not points:
        return None
    label = name
    if name.endswith("malformed_fraction"):
        label = name.replace("malformed_fraction", "well_formed_share")
        points = [(x, 1 - y if is_number(y) else None) for x, y in points]
    evaluation, lone = re.match(HELD_OUT, name) is not None, len(points) == 1
    return {
        "type": "scatter",
        # plotly reads a little HTML in names, so they are escaped; the JSON around them is escaped again in the page.
        "name": html.escape(label, quote=False),
        "x": [x for x, _ in points],
        "y": [y if is_number(y) else None for _, y in points],
        "mode": "markers" if evaluation or lone else "lines",
        "line": {"color": colour, "width": 1.8},
        "marker": {"color": colour, "size": 8, "symbol": "diamond" if evaluation else "circle"},
        "hovertemplate": "step %{x}: %{y:.4g}",
    }


def _layout(series: int) -> dict[str, Any]:
    axis = {"gridcolor": _GRID, "zeroline": False, "linecolor": _GRID, "tickcolor": _GRID, "automargin": True}
    return {
        "height": 250 + 16 * max(0, series - 3),
        "margin": {"l": 44, "r": 8, "t": 8, "b": 34},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": _INK},
        "xaxis": {**axis, "title": {"text": "step", "standoff": 4}},
        "yaxis": axis,
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.27, "x": 0, "yanchor": "top"},
        "hovermode": "x",
    }
