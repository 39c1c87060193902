"""Rows of a source: all of them, prepared once and for all starts, or as they flow."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Literal

from datasets import IterableDataset

from prism_cli.data.preflight import CHECKS_VERSION, Problem
from prism_cli.data.prepared import ROWS_VERSION, Loaded, Progress, prepare, prepared
from prism_cli.data.reading import Checks, RowReader
from prism_cli.data.rows import FEATURES
from prism_cli.data.sources import open_source
from prism_cli.errors import DataError

SHUFFLED_AT_ONCE = 1000
NAMED = 20
NO_CHECKS = Checks()


def load_rows(
    path: str,
    *,
    format: str = "auto",
    limit: int | None = None,
    allow_urls: Sequence[str] = (),
    on_bad_row: Literal["stop", "skip"] = "stop",
    checks: Checks = NO_CHECKS,
    instruction: str | None = None,
    cache: Path | None = None,
    processes: int = 1,
    progress: Progress = lambda done, total: None,
) -> Loaded:
    """Reads and checks a whole source, or takes what an earlier start made of it.

    Args:
        path: File, folder or hub id; see `open_source`.
        format: One of FORMATS, or `auto`.
        limit: Read at most this many rows.
        allow_urls: Hosts from which pictures may be fetched.
        on_bad_row: Stop at rows that can't be used, or leave them out.
        checks: What rows must hold.
        instruction: System message for rows without one.
        cache: Folder of prepared rows; None keeps them in memory.
        processes: How many to use for a large set.
        progress: Called with how many rows were read, and of how many if that is known.

    Raises:
        DataError: nothing there, or rows that can't be used; the first 20 are named.
    """
    reader = RowReader(open_source(path, limit), format, allow_urls, checks, instruction, processes)
    if cache is None:
        return _usable(path, prepare(reader, progress), on_bad_row)
    options = [path, format, list(allow_urls), instruction, checks.needs, repr(checks.grammar), bool(checks.verify)]
    state = [ROWS_VERSION, CHECKS_VERSION, reader.source.fingerprint()]
    folder = cache / f"{_digest([limit, *options])}-{_digest(state)}"
    return _usable(path, prepared(folder, reader, progress), on_bad_row)


def stream_rows(
    path: str,
    *,
    format: str = "auto",
    limit: int | None = None,
    allow_urls: Sequence[str] = (),
    on_bad_row: Literal["stop", "skip"] = "stop",
    checks: Checks = NO_CHECKS,
    instruction: str | None = None,
    seed: int = 0,
    refuse: Callable[[dict[str, Any]], str | None] = lambda row: None,
    on_skipped: Callable[[Sequence[Problem]], None] = lambda problems: None,
    on_pass: Callable[[int], None] = lambda skipped: None,
) -> IterableDataset:
    """Rows of a source, read and checked as they flow, shuffled a thousand at a time, from the start again at the end.

    It never ends, so that continuing at a step is passing over as many rows, whatever pass they are in.

    Args:
        path, format, limit, allow_urls, on_bad_row, checks, instruction: As for `load_rows`.
        seed: Of the shuffling; each pass has its own order.
        refuse: Why a row that passed the checks can't be used, or None.
        on_skipped: Called in the first pass with what is wrong with each row that is left out.
        on_pass: Called at the end of the first pass with how many rows were.

    Raises:
        DataError: nothing there; while it flows, a row that can't be used.
    """
    reader = RowReader(open_source(path, limit), format, allow_urls, checks, instruction)

    def usable(first_pass: bool) -> Iterator[dict[str, Any]]:
        skipped = 0
        for read in reader:
            problems = read.problems
            if read.row is not None:
                if (why := refuse(read.row)) is None:
                    yield read.row
                    continue
                problems = [*problems, Problem(read.file, read.number, "row", why, "shorten or drop it", "error")]
            if on_bad_row == "stop":
                raise _refusal(path, problems, 1)
            skipped += 1
            if first_pass:
                on_skipped(problems)
        if first_pass:
            on_pass(skipped)

    def rows() -> Iterator[dict[str, Any]]:
        for number in count():
            shuffled = _shuffled(usable(number == 0), Random(seed + number))
            if (first := next(shuffled, None)) is None:
                raise _no_rows(path)
            yield first
            yield from shuffled

    return IterableDataset.from_generator(rows, features=FEATURES)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _shuffled(rows: Iterator[dict[str, Any]], random: Random) -> Iterator[dict[str, Any]]:
    """Rows in another order, as far as a thousand of them allow."""
    held: list[dict[str, Any]] = []
    for row in rows:
        if len(held) < SHUFFLED_AT_ONCE:
            held.append(row)
            continue
        place = random.randrange(SHUFFLED_AT_ONCE)
        yield held[place]
        held[place] = row
    random.shuffle(held)
    yield from held


def _usable(path: str, loaded: Loaded, on_bad_row: str) -> Loaded:
    if loaded.skipped and on_bad_row == "stop":
        errors = [problem for problem in loaded.problems if problem.severity == "error"]
        raise _refusal(path, errors, loaded.skipped)
    if not len(loaded.rows):
        raise _no_rows(path)
    return loaded


def _no_rows(path: str) -> DataError:
    return DataError(f"{path} has no rows that can be used", "give a file with at least one row")


def _refusal(path: str, errors: Sequence[Problem], rows: int) -> DataError:
    more = rows - len({(problem.file, problem.row) for problem in errors[:NAMED]})
    lines = [*map(str, errors[:NAMED]), *([f"… and {more} more rows"] if more else [])]
    return DataError(
        "\n  ".join(lines),
        f"`prism data check {path}` shows all and can mend them; on_bad_row: skip leaves such rows out",
    )
