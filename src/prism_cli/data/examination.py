"""Rows looked at one by one, over all cores: what is wrong with each, and what to recognise it by."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from prism_cli.data.formats import ParsedRow
from prism_cli.data.overlap import Identity, exact_digest, text_digest
from prism_cli.data.pictures import Picture
from prism_cli.data.pool import spread
from prism_cli.data.preflight import RESPONSES, Problem, question_of
from prism_cli.data.reading import Checks, look_at, own_id
from prism_cli.data.sources import RawRow

SMALL = 128
"""Sets up to this size are checked in this process: starting others takes longer."""


class Rules(NamedTuple):
    """The rules rows are checked by; sent to other processes, so its function must be a named one.

    Attributes:
        format: One of `formats.FORMATS`, or `auto`: each row's is told from its columns.
        allow_urls: Hosts pictures may be fetched from.
        checks: What they must hold.
    """

    format: str
    allow_urls: tuple[str, ...] = ()
    checks: Checks = Checks()


class CheckedRow(NamedTuple):
    """A checked row, without its pictures.

    Attributes:
        file, number: Where it stands.
        format: How it is written, or None when that can't be told.
        id: Its own id, or one made of its place.
        problems: What is wrong with it by itself.
        pictures: Its pictures, looked at.
        identity: What it is recognised by; None when a part of it could not be read.
        prompt: Its turns, empty when it could not be read.
        response: The text SFT learns, where rows are for SFT.
    """

    file: str
    number: int
    format: str | None
    id: str
    problems: list[Problem]
    pictures: list[Picture]
    identity: Identity | None
    prompt: list[dict[str, str]]
    response: str | None


def examine(rows: Iterable[RawRow], rules: Rules, processes: int = 1) -> Iterator[CheckedRow]:
    """Checks rows and keeps their order; in other processes when there are many.

    Args:
        rows: As a source gives them.
        rules: What they are checked for.
        processes: How many to use; with 1 this one does the work.
    """
    stream = iter(rows)
    first = list(islice(stream, SMALL))
    if processes == 1 or len(first) < SMALL:
        for raw in chain(first, stream):
            yield check_raw(raw, rules)
        return
    yield from spread(partial(check_raw, rules=rules), chain(first, stream), processes)


def check_raw(raw: RawRow, rules: Rules) -> CheckedRow:
    """Parses one row, reads its pictures and checks both."""
    looked = look_at(raw, rules.format, rules.allow_urls, rules.checks, identify=True)
    parsed = looked.parsed
    return CheckedRow(
        raw.file,
        raw.number,
        looked.format,
        (parsed and parsed.id) or own_id(raw),
        looked.problems,
        looked.pictures,
        _identity(parsed, looked.pictures) if parsed is not None else None,
        parsed.prompt if parsed is not None else [],
        parsed.demonstration if parsed is not None and rules.checks.needs == "sft" else None,
    )


def _identity(parsed: ParsedRow, pictures: list[Picture]) -> Identity | None:
    if not question_of(parsed) or not all(picture.pixels for picture in pictures):
        return None
    return Identity(
        text_digest(*(turn["content"] for turn in parsed.prompt if turn["role"] != "system")),
        text_digest(*parsed.answers) if parsed.answers else None,
        exact_digest(*(getattr(parsed, name) for name in RESPONSES)),
        tuple(picture.pixels for picture in pictures),
        tuple(picture.shape for picture in pictures),
    )
