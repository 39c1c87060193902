"""Causes of an evaluated run's wrong answers: the wrong responses, their causes on disk, and the shares of causes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.errors import RecipeError
from prism_cli.evaluation.answering import KINDS, responses_of
from prism_cli.evaluation.attribution import CAUSES, HOLDS
from prism_cli.evaluation.summary import samples_file
from prism_cli.responses import Grammar, Part
from prism_cli.runs.files import read_lines

DECODINGS = dict(zip(KINDS, ("greedy", "sampled"), strict=True))


class Place(NamedTuple):
    """Place of a wrong response in a samples file.

    Attributes:
        row: Index of the question.
        kind: "greedy" or "samples".
        number: Its place among the question's responses of this kind.
    """

    row: int
    kind: str
    number: int


class CaptionBlock(NamedTuple):
    """The block in which a response says what it sees.

    Attributes:
        tag: Its tag.
        alone: The grammar of a response's beginning up to its end.
    """

    tag: str
    alone: Grammar


def caption_block(grammar: Grammar) -> CaptionBlock:
    """The block that is replaced: the first part, which must be one block, before another part.

    Raises:
        RecipeError: the grammar has none.
    """
    (name, part), *others = grammar.parts.items()
    if len(part.tags) != 1 or not others:
        raise RecipeError(
            f"attribution: the responses have no block for what is seen (parts: {', '.join(grammar.parts)})",
            "leave out --attribute, or evaluate runs whose first part is one block and not the only part",
        )
    return CaptionBlock(part.tags[0], Grammar({name: Part(part.tags, 1.0)}, None))


def causes_file(folder: Path, name: str) -> Path:
    """The attribution of an evaluated run: JSON lines, one a wrong response."""
    return folder / f"attribution-{name}.jsonl"


def wrong_places(samples: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> Iterator[Place]:
    """The responses found wrong, the greedy ones first.

    Args:
        samples: Lines of a samples file.
        kinds: Of the responses: "greedy", "samples".
    """
    for kind in kinds:
        for row, line in enumerate(samples):
            for number, response in enumerate(responses_of(line, kind)):
                if response.get("accuracy") == 0:
                    yield Place(row, kind, number)


def is_attributed(folder: Path, name: str, kinds: Sequence[str]) -> bool:
    """Whether every wrong response of these kinds has a cause."""
    path = causes_file(folder, name)
    count = sum(1 for _ in wrong_places(read_lines(samples_file(folder, name)), kinds))
    return path.exists() and len(read_lines(path)) >= count


def cause_shares(folder: Path, name: str) -> list[dict[str, Any]]:
    """A run's causes as shares of its wrong answers, with intervals: by decoding, over all sources and one by one.

    `holds` has the shares of the answers tried that came again from their own caption: beside the own picture, without
    one, beside another.
    """
    lines, shares = read_lines(causes_file(folder, name)), []
    for decoding in DECODINGS.values():
        decoded = [line for line in lines if line["decoding"] == decoding]
        sources = sorted({line["source"] for line in decoded})
        for source in [None, *sources] if len(sources) > 1 else [None]:
            chosen = [line for line in decoded if source in (None, line["source"])]
            shares += [{"run": name, "decoding": decoding, "source": source, **_shares(chosen)}] if chosen else []
    return shares


def _shares(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from prism_cli.evaluation.intervals import mean_interval

    questions = list(dict.fromkeys(line["id"] for line in lines))

    def share(of: Sequence[Mapping[str, Any]], true: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
        values: dict[str, list[float]] = {id: [] for id in questions}
        for line in of:
            values[line["id"]].append(float(true(line)))
        return mean_interval(list(values.values()))._asdict()

    tried = [line for line in lines if line["holds"]]
    causes = {cause: share(lines, lambda line, cause=cause: line["cause"] == cause) for cause in CAUSES}
    changes = HOLDS if tried else ()
    holds = {change: share(tried, lambda line, change=change: line["holds"][change]) for change in changes}
    return {"wrong": len(lines), "causes": causes, "holds": holds}
