"""Learning curves: which metrics of metrics.jsonl go into which plot."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
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
MOST_POINTS = 400


class Curve(NamedTuple):
    """One metric over the steps.

    Attributes:
        name: As in metrics.jsonl.
        x: Steps.
        y: Values; None leaves a gap.
        held_out: Whether it was measured on rows kept aside.
    """

    name: str
    x: list[float]
    y: list[float | None]
    held_out: bool


class Plot(NamedTuple):
    """One plot.

    Attributes:
        title: Its heading.
        curves: What it shows.
        folded: Whether it stands behind "more".
    """

    title: str
    curves: list[Curve]
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
        if curves := [curve for name in members if (curve := _curve(name, rows))]:
            made.append(Plot(title, curves, title not in _GROUPS))
    return made


def _group(name: str) -> str:
    plain = re.sub(HELD_OUT, "", name)
    group = next((title for title, pattern in _GROUPS.items() if re.fullmatch(pattern, plain)), None)
    return group or (plain.split("/")[0] if "/" in plain else "other")


def _curve(name: str, rows: Sequence[Mapping[str, Any]]) -> Curve | None:
    """The values, with a gap for what is not finite."""
    points = [(row["step"], row[name]) for row in rows if name in row and is_number(row.get("step"))]
    if not points:
        return None
    label = name
    if name.endswith("malformed_fraction"):
        label = name.replace("malformed_fraction", "well_formed_share")
        points = [(x, 1 - y if is_number(y) else None) for x, y in points]
    points = _thinned([(x, y if is_number(y) else None) for x, y in points])
    return Curve(label, [x for x, _ in points], [y for _, y in points], re.match(HELD_OUT, name) is not None)


def _thinned(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most `MOST_POINTS`: where there are more, each is the mean of its neighbours, at the last one's step."""
    width = -(-len(points) // MOST_POINTS)
    if width == 1:
        return points
    chunks = [points[i : i + width] for i in range(0, len(points), width)]
    return [
        (chunk[-1][0], fmean(known) if (known := [y for _, y in chunk if y is not None]) else None) for chunk in chunks
    ]
