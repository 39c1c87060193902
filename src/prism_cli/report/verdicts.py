"""Sentences that say what a comparison shows, and no more than its interval allows."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from prism_cli.report.quantities import is_number, metric


class Verdict(NamedTuple):
    """One sentence about one pair and one metric.

    Attributes:
        kind: "better", "worse", "changed" (neither good nor bad), "noise" or "unknown".
        text: The sentence.
        headline: Whether it is about accuracy or closeness to the teacher's captions, whatever it says.
    """

    kind: str
    text: str
    headline: bool


def verdicts(summary: Mapping[str, Any]) -> Iterator[Verdict]:
    """One sentence a pair and metric of summary.json; a pair's difference is b − a."""
    level = (summary.get("settings") or {}).get("level", 0.95)
    percent = f"{level * 100:g} %" if is_number(level) else "95 %"
    for pair in summary.get("pairs") or ():
        yield _verdict(pair, percent)


def _verdict(pair: Mapping[str, Any], percent: str) -> Verdict:
    a, b, shown = str(pair.get("a")), str(pair.get("b")), metric(str(pair.get("metric")))
    headline = shown.name.startswith(("accuracy", "caption_distance"))
    difference, low, high = (pair.get(key) for key in ("difference", "low", "high"))
    if not (is_number(difference) and is_number(low) and is_number(high)):
        text = f"{b} against {a}: {shown.words} can't be compared (no finite interval)."
        return Verdict("unknown", text, headline)
    unit = f" {shown.unit}" if shown.unit else ""
    if low <= 0 <= high:
        interval = f"{percent} interval {shown.number(low)} to {shown.number(high)}"
        text = f"{b} changed {shown.words} by {shown.number(difference)}{unit} against {a} ({interval}): within noise."
        return Verdict("noise", text, headline)
    raised = difference > 0
    ends = sorted((abs(low), abs(high)))
    interval = f"{percent} interval {shown.number(ends[0])} to {shown.number(ends[1])}"
    verb = "raised" if raised else "lowered"
    text = f"{b} {verb} {shown.words} by {shown.number(abs(difference))}{unit} against {a} ({interval})."
    if shown.better == 0:
        return Verdict("changed", text, headline)
    return Verdict("better" if raised == (shown.better > 0) else "worse", text, headline)
