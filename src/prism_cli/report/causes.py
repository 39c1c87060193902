"""Why answers were wrong, as stacked bars with their numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prism_cli.report.quantities import Metric, is_number
from prism_cli.report.tables import Cell, cell

# In the order of their colours.
MEANING = {
    "perception": "its description of the picture misleads",
    "reasoning": "its description suffices, the conclusion is wrong",
    "both": "the description misleads, and the reasoning does not follow it",
    "format": "not well-formed",
    "verifier": "the right answer, or how it is compared, is in doubt",
    "unknown": "left open",
}
SHARE = Metric("share", "share", "", 100.0, "points", 1, 0)


class Piece(NamedTuple):
    """One cause's part of a bar.

    Attributes:
        cause: Its name.
        number: Which colour.
        width: Percent of the bar.
        text: Its share in words.
    """

    cause: str
    number: int
    width: float
    text: str


class CauseBar(NamedTuple):
    """The wrong answers of one run and decoding.

    Attributes:
        run: Which run.
        decoding: "greedy" or "sampled", with the source where it is one of several.
        wrong: How many.
        pieces: What they come from.
        cells: The same as a table's cells, a cause each.
        over_all: Whether it is over all sources.
    """

    run: str
    decoding: str
    wrong: int
    pieces: list[Piece]
    cells: list[Cell]
    over_all: bool


class Causes(NamedTuple):
    """The wrong answers of one evaluation.

    Attributes:
        id: The evaluation's step.
        names: The causes found, in order.
        legend: (cause, which colour, what it means).
        bars: A run and decoding each.
    """

    id: str
    names: list[str]
    legend: list[tuple[str, int, str]]
    bars: list[CauseBar]


def causes(id: str, shares: Sequence[Any]) -> Causes | None:
    """The causes an evaluation found, a bar a run and decoding; causes that never occur are left out.

    Args:
        id: The evaluation's step.
        shares: `summary["attribution"]`.
    """
    measured = [one for one in shares if isinstance(one, Mapping) and isinstance(one.get("causes"), Mapping)]
    every = dict.fromkeys(str(cause) for one in measured for cause in one["causes"])
    names = [cause for cause in every if any(_value(one, cause) for one in measured)]
    known = list(dict.fromkeys([*MEANING, *names]))
    colours = {cause: known.index(cause) % 8 for cause in names}
    bars = []
    for one in measured:
        pieces = [
            Piece(cause, colours[cause], round(100 * share, 2), f"{cause} {SHARE.number(share)} %")
            for cause in names
            if (share := _value(one, cause))
        ]
        decoding = str(one.get("decoding", "–")) + (f", {one['source']}" if one.get("source") else "")
        cells = [cell(SHARE, one["causes"].get(cause)) for cause in names]
        bars.append(
            CauseBar(str(one.get("run", "–")), decoding, one.get("wrong", 0), pieces, cells, not one.get("source"))
        )
    legend = [(cause, colours[cause], MEANING.get(cause, "")) for cause in names]
    return Causes(id, names, legend, bars) if bars else None


def _value(one: Mapping[str, Any], cause: str) -> float:
    share = one["causes"].get(cause)
    value = share.get("value") if isinstance(share, Mapping) else None
    return value if is_number(value) else 0.0
