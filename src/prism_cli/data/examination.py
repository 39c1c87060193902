"""Rows looked at one by one, over all cores: what is wrong with each, and what to recognise it by."""

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, islice
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.data.formats import ParsedRow, detect, parse
from prism_cli.data.images import ImageReader
from prism_cli.data.overlap import Identity, text_digest
from prism_cli.data.pictures import Fault, Picture, look
from prism_cli.data.preflight import Needs, Problem, Verify, check_looked_at, question_of
from prism_cli.data.sources import RawRow
from prism_cli.errors import DataError
from prism_cli.responses import Grammar

CHUNK = 32
SMALL = 128
"""Sets up to this size are checked in this process: starting others takes longer."""


class Rules(NamedTuple):
    """What rows are checked for; sent to other processes, so its function must be a named one.

    Attributes:
        format: One of `formats.FORMATS`, or `auto`.
        allow_urls: Hosts pictures may be fetched from.
        needs, grammar, verify: As `preflight.check_row` takes them.
    """

    format: str
    allow_urls: tuple[str, ...] = ()
    needs: Needs | None = None
    grammar: Grammar | None = None
    verify: Verify | None = None


class CheckedRow(NamedTuple):
    """What is kept of a row once it was looked at.

    Attributes:
        file, number: Where it stands.
        id: Its own id, or one made of its place.
        problems: What is wrong with it by itself.
        pictures: Its pictures, looked at.
        identity: What it is recognised by; None when a part of it could not be read.
        prompt: Its turns, empty when it could not be read.
        response: The text SFT learns, where rows are for SFT.
    """

    file: str
    number: int
    id: str
    problems: list[Problem]
    pictures: list[Picture]
    identity: Identity | None
    prompt: list[dict[str, str]]
    response: str | None


def examine(rows: Iterable[RawRow], rules: Rules, formats: dict[str, str], processes: int = 1) -> Iterator[CheckedRow]:
    """Checks rows and keeps their order; in other processes when there are many.

    Args:
        rows: As a source gives them.
        rules: What they are checked for.
        formats: File → format; filled as files come, each told from its first row that tells.
        processes: How many to use; with 1 this one does the work.
    """
    stream = ((raw, _format(raw, rules.format, formats)) for raw in rows)
    first = list(islice(stream, SMALL))
    if processes == 1 or len(first) < SMALL:
        for raw, format in chain(first, stream):
            yield check_raw(raw, rules, format)
        return
    with _workers(processes) as pool:
        waiting = deque()
        for chunk in batches(chain(first, stream)):
            waiting.append(pool.submit(_check_chunk, chunk, rules))
            if len(waiting) > 3 * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _format(raw: RawRow, format: str, formats: dict[str, str]) -> str:
    """The format of a row's file; `auto` when neither it nor a row before tells."""
    if raw.file not in formats and format == "auto":
        if raw.fields is None:
            return format
        try:
            format = detect(raw.fields)
        except DataError:
            return format
    return formats.setdefault(raw.file, format)


def check_raw(raw: RawRow, rules: Rules, format: str) -> CheckedRow:
    """Parses one row, reads its pictures and checks both."""
    if raw.fields is None:
        return _unreadable(raw, "row", raw.problem or "it can't be read", "mend it, or drop it")
    try:
        parsed = parse(detect(raw.fields) if format == "auto" else format, raw.fields)
    except DataError as error:
        field, colon, what = str(error).partition(": ")
        return _unreadable(raw, field if colon else "row", what or field, error.hint or "mend it, or drop it")
    pictures = [_picture(reference, raw.folder, rules.allow_urls) for reference in parsed.images]
    problems = check_looked_at(
        parsed, pictures, file=raw.file, row=raw.number, needs=rules.needs, grammar=rules.grammar, verify=rules.verify
    )
    return CheckedRow(
        raw.file,
        raw.number,
        parsed.id or _own_id(raw),
        problems,
        pictures,
        _identity(parsed, pictures),
        parsed.prompt,
        parsed.demonstration if rules.needs == "sft" else None,
    )


def _own_id(raw: RawRow) -> str:
    return f"{Path(raw.file).stem}-{raw.number}"


def _picture(reference: Any, folder: Path | None, allow_urls: tuple[str, ...]) -> Picture:
    try:
        return look(_reader(folder, allow_urls).read(reference), identify=True)
    except DataError as error:
        return Picture(0, 0, "", Fault("missing picture", str(error), error.hint or "mend it, or drop the row"))


@lru_cache(maxsize=8)
def _reader(folder: Path | None, allow_urls: tuple[str, ...]) -> ImageReader:
    return ImageReader(folder, allow_urls)


def _identity(parsed: ParsedRow, pictures: list[Picture]) -> Identity | None:
    if not question_of(parsed) or not all(picture.pixels for picture in pictures):
        return None
    return Identity(
        text_digest(*(turn["content"] for turn in parsed.prompt if turn["role"] != "system")),
        text_digest(*parsed.answers),
        tuple(picture.pixels for picture in pictures),
        tuple(picture.shape for picture in pictures),
    )


def _unreadable(raw: RawRow, field: str, what: str, cure: str) -> CheckedRow:
    problem = Problem(raw.file, raw.number, field, what, cure, "error")
    return CheckedRow(raw.file, raw.number, _own_id(raw), [problem], [], None, [], None)


# Other processes -----------------------------------------------------------------------------------------------------

_stop: Event | None = None


def _check_chunk(chunk: list[tuple[RawRow, str]], rules: Rules) -> list[CheckedRow]:
    return [check_raw(raw, rules, format) for raw, format in chunk if not (_stop and _stop.is_set())]


def _begin(stop: Event) -> None:
    global _stop
    _stop = stop


@contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start clean (a fork of one that holds threads may hang) and end within a row of being told."""
    context = get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(stop,))
    try:
        with _interrupts_held():
            for _ in range(processes):
                pool.submit(_check_chunk, [], Rules("auto"))  # each starts one
        yield pool
    except BrokenProcessPool:
        raise DataError("a process that checked rows was killed", "free memory, then run the command again") from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keeps Ctrl-C waiting; what is started meanwhile never gets it, from its first line on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def batches(items: Iterable) -> Iterator[list]:
    """Lists of a few items each."""
    stream = iter(items)
    while batch := list(islice(stream, CHUNK)):
        yield batch
