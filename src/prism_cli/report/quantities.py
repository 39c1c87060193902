"""Evaluation metrics as people read them: names, scales, digits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

_DISTANCES = ("caption_distance", "drift", "drift_length_matched")
_SHARES = ("accuracy", "well_formed", "perception", "reasoning")


class Metric(NamedTuple):
    """One metric of summary.json, as it is shown.

    Attributes:
        name: Its name there ("accuracy/sampled").
        quantity: What is measured ("accuracy").
        decoding: "greedy", "sampled", or "" where it does not apply.
        scale: What values are multiplied by (shares: 100).
        unit: Unit of a difference, in words.
        digits: Decimals shown.
        better: +1 when more is better, −1 when less is, 0 when neither.
    """

    name: str
    quantity: str
    decoding: str
    scale: float
    unit: str
    digits: int
    better: int

    @property
    def words(self) -> str:
        """The metric's name in a sentence ("sampled accuracy")."""
        return f"{self.decoding} {self.quantity}".strip()

    def number(self, value: float) -> str:
        """One value, scaled and rounded, with a real minus sign."""
        text = f"{value * self.scale:.{self.digits}f}"
        return (text if float(text) else text.lstrip("-")).replace("-", "−")


def metric(name: str) -> Metric:
    """The metric a name of summary.json stands for; an unknown one is shown as it is."""
    base, _, decoding = name.rpartition("/") if name.endswith(("/greedy", "/sampled")) else (name, "", "")
    room = base.split("/")[0]
    words = base.replace("well_formed", "well-formed").replace("_", " ").replace("/", " ")
    if room == "truncated":
        return Metric(name, words, decoding, 100.0, "points", 1, -1)
    if room == "failed":
        return Metric(name, words, decoding, 1.0, "responses", 0, -1)
    if room in _SHARES or room.startswith("pass@"):
        return Metric(name, words, decoding, 100.0, "points", 1, 1)
    if room == "length":
        return Metric(name, words, decoding, 1.0, "tokens", 1, 0)
    if room == "teacher_logprob":
        quantity = words.replace("teacher logprob", "teacher log-probability")
        return Metric(name, quantity, decoding, 1.0, "nats a token", 3, 1)
    return Metric(name, words, decoding, 1.0, "", 3, -1 if room in _DISTANCES else 0)


def metrics_of(summary: Mapping[str, Any]) -> list[Metric]:
    """The metrics any of the runs has, in order of appearance, each quantity's greedy beside its sampled."""
    names = dict.fromkeys(name for run in summary.get("runs", ()) for name in run.get("metrics", ()))
    metrics = [metric(name) for name in names]
    order = {quantity: i for i, quantity in enumerate(dict.fromkeys(m.quantity for m in metrics))}
    return sorted(metrics, key=lambda m: (order[m.quantity], m.decoding))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number (and no bool)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def spread(shown: Metric, cell: Mapping[str, Any]) -> str:
    """The interval beside a value: "±2.1", "49.0 to 53.4" when it is lopsided, "" when there is none."""
    value, low, high = (cell.get(key) for key in ("value", "low", "high"))
    if not (is_number(value) and is_number(low) and is_number(high)):
        return ""
    below, above = (shown.number(side) for side in (value - low, high - value))
    return f"±{below}" if below == above else f"{shown.number(low)} to {shown.number(high)}"


def clear_winner(shown: Metric, cells: Sequence[Mapping[str, Any] | None]) -> int | None:
    """The cell that is best beyond doubt, its interval apart from every other's; else None."""
    known = [
        (i, cell) for i, cell in enumerate(cells) if cell and is_number(cell.get("low")) and is_number(cell.get("high"))
    ]
    if shown.better == 0 or len(known) < 2 or len(known) < len([cell for cell in cells if cell]):
        return None
    worst, best = ("low", "high") if shown.better > 0 else ("high", "low")
    winner, cell = max(known, key=lambda item: shown.better * item[1][worst])
    others = [other[best] for i, other in known if i != winner]
    return winner if all(shown.better * (cell[worst] - other) > 0 for other in others) else None
