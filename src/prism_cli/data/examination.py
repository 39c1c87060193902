"""Rows looked at one by one, over all cores: what is wrong with each, and what to recognise it by."""

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import NamedTuple

from prism_cli.data.formats import ParsedRow
from prism_cli.data.overlap import Identity, exact_digest, text_digest
from prism_cli.data.pictures import Picture
from prism_cli.data.preflight import RESPONSES, Problem, question_of
from prism_cli.data.reading import Checks, look_at, own_id
from prism_cli.data.sources import RawRow
from prism_cli.errors import DataError

CHUNK = 32
SMALL = 128
"""Sets up to this size are checked in this process: starting others takes longer."""


class Rules(NamedTuple):
    """What rows are checked for; sent to other processes, so its function must be a named one.

    Attributes:
        format: One of `formats.FORMATS`, or `auto`: each row's is told from its columns.
        allow_urls: Hosts pictures may be fetched from.
        checks: What they must hold.
    """

    format: str
    allow_urls: tuple[str, ...] = ()
    checks: Checks = Checks()


class CheckedRow(NamedTuple):
    """What is kept of a row once it was looked at.

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
    with _workers(processes) as pool:
        waiting = deque()
        for chunk in batches(chain(first, stream)):
            waiting.append(pool.submit(_check_chunk, chunk, rules))
            if len(waiting) > 3 * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


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
        text_digest(*parsed.answers),
        exact_digest(*(getattr(parsed, name) for name in RESPONSES)),
        tuple(picture.pixels for picture in pictures),
        tuple(picture.shape for picture in pictures),
    )


# Other processes -----------------------------------------------------------------------------------------------------

_stop: Event | None = None


def _check_chunk(chunk: list[RawRow], rules: Rules) -> list[CheckedRow]:
    return [check_raw(raw, rules) for raw in chunk if not (_stop and _stop.is_set())]


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
