"""Reading: raw rows parsed, their pictures read, checked; one after the other."""

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.data.formats import ParsedRow, detect, parse
from prism_cli.data.images import ImageReader, is_url
from prism_cli.data.pictures import Fault, Picture, look
from prism_cli.data.pool import spread
from prism_cli.data.preflight import Needs, Problem, Verify, check_row
from prism_cli.data.sources import RawRow, Source
from prism_cli.errors import DataError
from prism_cli.responses import Grammar

ALONE = 1000
"""So many rows are read in this process before others are started: that takes seconds."""


class Checks(NamedTuple):
    """The checks of a row; see `check_row`.

    Attributes:
        needs: The stage they are for, or None.
        grammar: What teacher responses must follow, or None.
        verify: Whether the verifier would score an answer, or None.
    """

    needs: Needs | None = None
    grammar: Grammar | None = None
    verify: Verify | None = None


class LookedAt(NamedTuple):
    """One row, read and looked at.

    Attributes:
        format: How it is written, one of FORMATS, or None when that can't be told.
        parsed: What it says, or None when it can't be read.
        images: Its pictures as `ImageReader` gives them; None for one that can't be had.
        pictures: The same, looked at.
        problems: What is wrong with it by itself; warnings too.
    """

    format: str | None
    parsed: ParsedRow | None
    images: list[dict[str, Any] | None]
    pictures: list[Picture]
    problems: list[Problem]


def look_at(raw: RawRow, format: str, allow_urls: tuple[str, ...], checks: Checks, identify: bool = False) -> LookedAt:
    """Parses one row, reads its pictures and checks both.

    Args:
        raw: The row.
        format: One of FORMATS, or `auto`: told from its columns.
        allow_urls: Hosts from which pictures may be fetched.
        checks: What it must hold.
        identify: Also hash its pictures.
    """
    if raw.fields is None:
        problem = _unreadable(raw, "row", raw.problem or "it can't be read", "mend it, or drop it")
        return LookedAt(None, None, [], [], [problem])
    row_format = None
    try:
        row_format = detect(raw.fields) if format == "auto" else format
        parsed = parse(row_format, raw.fields)
    except DataError as error:
        field, colon, what = str(error).partition(": ")
        problem = _unreadable(raw, field if colon else "row", what or field, error.hint or "mend it, or drop it")
        return LookedAt(row_format, None, [], [], [problem])
    reader = reader_of(raw.folder, allow_urls)
    images, pictures = [], []
    for reference in parsed.images:
        try:
            images.append(reader.read(reference))
            pictures.append(look(images[-1], identify))
        except DataError as error:
            images.append(None)
            fault = Fault("missing picture", str(error), error.hint or "mend it, or drop the row")
            pictures.append(Picture(0, 0, "", fault))
    problems = check_row(parsed, pictures, file=raw.file, row=raw.number, **checks._asdict())
    return LookedAt(row_format, parsed, images, pictures, problems)


def _unreadable(raw: RawRow, field: str, what: str, cure: str) -> Problem:
    return Problem(raw.file, raw.number, field, what, cure, "error")


@lru_cache(maxsize=8)
def reader_of(folder: Path | None, allow_urls: tuple[str, ...]) -> ImageReader:
    """Reads pictures of the rows whose folder this is."""
    return ImageReader(folder, allow_urls)


def own_id(raw: RawRow) -> str:
    """The id of a row that gives none: its place."""
    return f"{Path(raw.file).stem}-{raw.number}"


# Rows for training ---------------------------------------------------------------------------------------------------


class LocalPicture(NamedTuple):
    """A local picture a row named: as it named it, where that led, its size and time; both −1 when it is not there."""

    name: str
    path: str
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, name: str | Path) -> "LocalPicture":
        """As it is now.

        Args:
            name: Its absolute path, links in it not followed.
        """
        try:
            path = Path(name).resolve()
            stat = path.stat()
        except (OSError, ValueError, RuntimeError):  # not there, a NUL in it, links in a circle
            return cls(str(name), "", -1, -1)
        return cls(str(name), str(path), stat.st_size, stat.st_mtime_ns)


class ReadRow(NamedTuple):
    """One row, read.

    Attributes:
        file: Where it stands.
        number: Its number there.
        format: How it is written, or None when that can't be told.
        row: In the shape of `data.rows`, or None when it can't be used.
        problems: What is wrong with it; warnings too.
        pictures: The local pictures it names.
        fetched: Whether a picture was asked of a host.
    """

    file: str
    number: int
    format: str | None
    row: dict[str, Any] | None
    problems: list[Problem]
    pictures: list[LocalPicture]
    fetched: bool


class RowReader:
    """Reads a source's rows; a bad one is a problem, never the end.

    Args:
        source: Where from.
        format: One of FORMATS, or `auto`: each row's is told from its columns.
        allow_urls: Hosts from which pictures may be fetched.
        checks: What rows must hold.
        instruction: System message for rows without one.
        processes: How many to use when there are many rows; then what verifies must be a named function.

    Attributes:
        formats: Those found so far.
    """

    def __init__(
        self,
        source: Source,
        format: str,
        allow_urls: Sequence[str],
        checks: Checks,
        instruction: str | None,
        processes: int = 1,
    ):
        self.source = source
        self.formats: list[str] = []
        self._read_row = partial(
            read_row, format=format, allow_urls=tuple(allow_urls), checks=checks, instruction=instruction
        )
        self._processes = processes

    def __iter__(self) -> Iterator[ReadRow]:
        rows_of: dict[str, str] = {}
        for read in self._read():
            if read.format is not None and read.format not in self.formats:
                self.formats.append(read.format)
            if read.row is not None:
                where = f"{read.file}:{read.number}"
                if (before := rows_of.setdefault(read.row["id"], where)) != where:
                    what = f"{read.row['id']!r} is also the id of {before}"
                    twice = Problem(
                        *(read.file, read.number, "id", what, "give each row an `id` of its own", "error"),
                        "repeated id",
                    )
                    read = read._replace(row=None, problems=[*read.problems, twice])
            yield read

    def _read(self) -> Iterator[ReadRow]:
        rows = iter(self.source)
        yield from map(self._read_row, rows if self._processes == 1 else islice(rows, ALONE))
        if (more := next(rows, None)) is not None:
            yield from spread(self._read_row, chain([more], rows), self._processes)


def read_row(raw: RawRow, format: str, allow_urls: tuple[str, ...], checks: Checks, instruction: str | None) -> ReadRow:
    """One row in the shape that training takes; the arguments are those of `RowReader`."""
    looked = look_at(raw, format, allow_urls, checks)
    parsed, row = looked.parsed, None
    if parsed is not None and all(problem.severity != "error" for problem in looked.problems):
        prompt = parsed.prompt
        if instruction is not None and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": instruction}, *prompt]
        row = {
            "id": parsed.id or own_id(raw),
            "source": "",
            "prompt": prompt,
            "images": looked.images,
            "answers": parsed.answers,
            "teacher_response": parsed.teacher_response,
            "student_response": parsed.student_response,
            "caption": parsed.caption,
            "demonstration": parsed.demonstration,
            "truth": None,
        }
    references = parsed.images if parsed is not None else []
    reader = reader_of(raw.folder, allow_urls)
    names = [name for name in map(reader.local_name, references) if name is not None]
    return ReadRow(
        raw.file,
        raw.number,
        looked.format,
        row,
        looked.problems,
        [LocalPicture.at((reader.folder or Path()) / name) for name in names],
        any(map(is_url, references)),
    )
