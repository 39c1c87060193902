"""Sentences that say what a comparison shows, and no more than its interval allows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prism_cli.report.quantities import is_number, metric
from prism_cli.report.tables import run_before

# The metrics of the headlines, the most important first.
HEADLINES = ("accuracy/sampled", "accuracy/greedy", "caption_distance/sampled", "caption_distance/greedy")
MOST_HEADLINES = 12


class Verdict(NamedTuple):
    """One sentence about one pair and one metric.

    Attributes:
        kind: "better", "worse", "changed" (neither good nor bad), "noise" or "unknown".
        text: The sentence.
        metric: Of which metric.
        runs: The two runs.
    """

    kind: str
    text: str
    metric: str = ""
    runs: tuple[str, str] = ("", "")


def verdicts(summary: Mapping[str, Any]) -> Iterator[Verdict]:
    """One sentence a pair and metric of summary.json; a pair's difference is b − a."""
    level = (summary.get("settings") or {}).get("level", 0.95)
    percent = f"{level * 100:g} %" if is_number(level) else "95 %"
    for pair in summary.get("pairs") or ():
        yield _verdict(pair, percent)


def headlines(summary: Mapping[str, Any], before: Mapping[str, str], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that say what each run did to the one it started from: of accuracy, then of closeness to captions.

    Args:
        summary: Of which they are.
        before: Run → the run it started from, as far as is known.
        verdicts: All.
    """
    names = [str(run.get("id")) for run in summary.get("runs") or () if isinstance(run, Mapping)]
    steps = {frozenset((run_before(name, names, before), name)) for name in names}
    # In the order of the runs; pairs stand by the run they are compared with.
    ordered = sorted(verdicts, key=lambda one: max(names.index(run) if run in names else 0 for run in one.runs))
    headlines: list[Verdict] = []
    for wanted in HEADLINES:
        of_it = [one for one in ordered if one.metric == wanted and frozenset(one.runs) in steps]
        if not headlines or len(headlines) + len(of_it) <= MOST_HEADLINES:
            headlines += of_it[:MOST_HEADLINES]
    return headlines


def _verdict(pair: Mapping[str, Any], percent: str) -> Verdict:
    a, b, shown = str(pair.get("a")), str(pair.get("b")), metric(str(pair.get("metric")))
    about = (shown.name, (a, b))
    difference, low, high = (pair.get(key) for key in ("difference", "low", "high"))
    if not (is_number(difference) and is_number(low) and is_number(high)):
        text = f"{b} against {a}: {shown.words} can't be compared (no finite interval)."
        return Verdict("unknown", text, *about)
    unit = f" {shown.unit}" if shown.unit else ""
    if low <= 0 <= high:
        interval = f"{percent} interval {shown.number(low)} to {shown.number(high)}"
        text = f"{b} changed {shown.words} by {shown.number(difference)}{unit} against {a} ({interval}): within noise."
        return Verdict("noise", text, *about)
    raised = difference > 0
    ends = sorted((abs(low), abs(high)))
    interval = f"{percent} interval {shown.number(ends[0])} to {shown.number(ends[1])}"
    verb = "raised" if raised else "lowered"
    text = f"{b} {verb} {shown.words} by {shown.number(abs(difference))}{unit} against {a} ({interval})."
    if shown.better == 0:
        return Verdict("changed", text, *about)
    return Verdict("better" if raised == (shown.better > 0) else "worse", text, *about)
