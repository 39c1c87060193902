"""From raw rows to rows that can be used: parsed, their pictures found, checked; one after the other."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.data.formats import ParsedRow, detect, parse
from prism_cli.data.images import ImageReader
from prism_cli.data.preflight import Needs, Problem, Verify, check_row
from prism_cli.data.sources import RawRow, Source
from prism_cli.errors import DataError
from prism_cli.responses import Grammar


class Checks(NamedTuple):
    """What rows must hold, beside being rows; see `check_row`.

    Attributes:
        needs: The stage they are for, or None.
        grammar: What teacher responses must follow, or None.
        verify: Whether the verifier would score an answer, or None.
    """

    needs: Needs | None = None
    grammar: Grammar | None = None
    verify: Verify | None = None


class LocalPicture(NamedTuple):
    """A local picture a row named: its path, size and time; both −1 when it is not there."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: str | Path) -> "LocalPicture":
        """As it is now."""
        try:
            found = Path(path).stat()
        except OSError:
            return cls(str(path), -1, -1)
        return cls(str(path), found.st_size, found.st_mtime_ns)


class ReadRow(NamedTuple):
    """One row, read.

    Attributes:
        number: Its number in its file.
        row: In the shape of `data.rows`, or None when it can't be used.
        problems: What is wrong with it; warnings too.
        pictures: The local pictures it names.
        fetched: Whether a picture was asked of a host.
    """

    number: int
    row: dict[str, Any] | None
    problems: list[Problem]
    pictures: list[LocalPicture]
    fetched: bool


class RowReader:
    """Reads a source's rows; a bad one is told, never the end.

    Args:
        source: Where from.
        format: One of FORMATS, or `auto`: each file's is told from its first row.
        allow_urls: Hosts from which pictures may be fetched.
        checks: What rows must hold.
        instruction: System message for rows without one.

    Attributes:
        formats: Those found so far.
    """

    def __init__(self, source: Source, format: str, allow_urls: Sequence[str], checks: Checks, instruction: str | None):
        self.source = source
        self.formats: list[str] = [] if format == "auto" else [format]
        self._forced = None if format == "auto" else format
        self._allow_urls = allow_urls
        self._checks = checks
        self._instruction = instruction

    def __iter__(self) -> Iterator[ReadRow]:
        rows_of: dict[str, str] = {}
        format_of: dict[str, str] = {}
        readers: dict[Path | None, ImageReader] = {}
        for raw in self.source:
            if raw.folder not in readers:
                readers[raw.folder] = ImageReader(raw.folder, self._allow_urls)
            read = self._read(raw, format_of, readers[raw.folder])
            if read.row is not None:
                where = f"{raw.file}:{raw.number}"
                if (before := rows_of.setdefault(read.row["id"], where)) != where:
                    what = f"{read.row['id']!r} is also the id of {before}"
                    twice = Problem(
                        *(raw.file, raw.number, "id", what, "give each row an `id` of its own", "error"), "repeated id"
                    )
                    read = read._replace(row=None, problems=[*read.problems, twice])
            yield read

    def _read(self, raw: RawRow, format_of: dict[str, str], reader: ImageReader) -> ReadRow:
        if raw.fields is None:
            found = Problem(raw.file, raw.number, "row", raw.problem or "", "mend or drop it", "error")
            return ReadRow(raw.number, None, [found], [], False)
        try:
            parsed = parse(self._forced or self._format(raw, format_of), raw.fields)
        except DataError as error:
            field, _, what = str(error).partition(": ")
            found = Problem(raw.file, raw.number, field, what, error.hint or "", "error")
            return ReadRow(raw.number, None, [found], [], False)
        images, problems = [], []
        for number, reference in enumerate(parsed.images, 1):
            try:
                images.append(reader.read(reference))
            except DataError as error:
                field = "image" if len(parsed.images) == 1 else f"image {number} of {len(parsed.images)}"
                problems.append(
                    Problem(raw.file, raw.number, field, str(error), error.hint or "", "error", "no picture")
                )
        problems += check_row(parsed, images, file=raw.file, row=raw.number, **self._checks._asdict())
        usable = all(problem.severity != "error" for problem in problems)
        return ReadRow(
            raw.number,
            self._row(raw, parsed, images) if usable else None,
            problems,
            _local_pictures(parsed, reader),
            any(isinstance(reference, str) and "://" in reference for reference in parsed.images),
        )

    def _format(self, raw: RawRow, format_of: dict[str, str]) -> str:
        if raw.file not in format_of:
            format_of[raw.file] = detect(raw.fields or {})
            if format_of[raw.file] not in self.formats:
                self.formats.append(format_of[raw.file])
        return format_of[raw.file]

    def _row(self, raw: RawRow, parsed: ParsedRow, images: list[dict[str, Any]]) -> dict[str, Any]:
        prompt = parsed.prompt
        if self._instruction is not None and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": self._instruction}, *prompt]
        return {
            "id": parsed.id or f"{Path(raw.file).stem}-{raw.number}",
            "source": "",
            "prompt": prompt,
            "images": images,
            "answers": parsed.answers,
            "teacher_response": parsed.teacher_response,
            "student_response": parsed.student_response,
            "caption": parsed.caption,
            "demonstration": parsed.demonstration,
            "truth": None,
        }


def _local_pictures(parsed: ParsedRow, reader: ImageReader) -> list[LocalPicture]:
    found = []
    for reference in parsed.images:
        name = reference.get("path") if isinstance(reference, dict) and not reference.get("bytes") else reference
        if isinstance(name, str) and not name.startswith("data:") and "://" not in name:
            try:
                found.append(LocalPicture.at(reader.local_file(name)))
            except DataError:
                continue  # out of the folder: it stays refused whatever becomes of the file
    return found
