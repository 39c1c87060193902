"""Raw rows from a file, a folder or the hub, one after the other: memory holds a few rows, not the set."""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from prism_cli.data.formats import detect
from prism_cli.data.hub import HubName, hub_commit, hub_rows
from prism_cli.data.lines import Entry, csv_entries, json_array_entries, json_line_entries
from prism_cli.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
# What `data check --fix` and `collect` leave beside the rows: why others are not there.
REJECTED = "rejected.jsonl"
# Few, since each may hold megabytes of pictures.
PARQUET_ROWS_AT_ONCE = 16


class RawRow(NamedTuple):
    """One row as its source holds it.

    Attributes:
        file: Where it stands, as the user would name it.
        number: The line of a JSONL or CSV file, the row elsewhere; from 1.
        fields: Its columns, or None.
        problem: Why there are no fields, or None.
        folder: Its pictures must lie inside; None on the hub, whose rows can't name local files.
    """

    file: str
    number: int
    fields: dict[str, Any] | None
    problem: str | None
    folder: Path | None


class Source:
    """Rows of one or several files, or of a hub data set; can be read again and again.

    Attributes:
        name: As the user wrote it.
        files: The local files, in order; none on the hub.
    """

    def __init__(self, name: str, files: list[Path], hub: HubName | None, limit: int | None):
        self.name = name
        self.files = files
        self._hub = hub
        self._limit = limit
        self._commit = hub_commit(hub) if hub else None

    def __iter__(self) -> Iterator[RawRow]:
        return islice(self._all(), self._limit)

    def count(self) -> int | None:
        """Number of rows; None where only reading all of them would tell."""
        if self._hub or any(file.suffix != ".parquet" for file in self.files):
            return None
        rows = sum(pq.ParquetFile(file).metadata.num_rows for file in self.files)
        return rows if self._limit is None else min(rows, self._limit)

    def fingerprint(self) -> str:
        """Changes when the source does: size and time of each file, or the hub's commit."""
        if self._hub:
            return _digest([*self._hub, self._commit, self._limit])
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return _digest([stats, self._limit])

    def _all(self) -> Iterator[RawRow]:
        if self._hub:
            for number, fields in enumerate(hub_rows(self._hub, self._commit), 1):
                yield RawRow(self._hub.shown, number, fields, None, None)
        for file in self.files:
            folder = file.parent.resolve()
            for number, fields, problem in _reader(file)(file):
                yield RawRow(file.name, number, fields, problem, folder)


def open_source(path: str, limit: int | None = None) -> Source:
    """A source by its name: a local file, a folder of them, or a hub data set.

    Args:
        path: File, folder, run folder of a collection or curation, or hub id: `name`, `name@split`, `name:config`,
            `name:config@split`, `name/file.parquet`.
        limit: Give at most this many rows.

    Raises:
        DataError: nothing there, or nothing that can be read.
    """
    place = Path(path)
    if (place / "run.json").is_file() and (place / "data").is_dir():
        place = place / "data"  # a collection or curation: beside its set lie files that are none
    elif (place / "run.json").is_file() and (place / "recipe.yaml").is_file():
        raise DataError(f"{path} is a run without a set", "let its command end, or name the data file")
    if place.is_dir():
        candidates = (file for file in place.iterdir() if file.suffix in SUFFIXES and file.name != REJECTED)
        files = sorted(file for file in candidates if file.is_file())
        if not files:
            raise DataError(f"{path} holds no data file", f"one of {', '.join(SUFFIXES)} must lie in it, not deeper")
    elif place.is_file():
        if place.suffix not in SUFFIXES:
            raise DataError(f"{path}: {place.suffix or 'no'} suffix is not known", f"one of {', '.join(SUFFIXES)}")
        files = [place]
    elif is_local_name(path):
        raise DataError(f"no file {path}", "check data.path or --data")
    else:
        return Source(path, [], HubName.of(path), limit)
    for file in files:
        _check_file(file)
    return Source(path, files, None, limit)


def is_local_name(path: str) -> bool:
    """Whether a name can only mean a local file or folder: hub files have an owner and a data set before them."""
    place = Path(path)
    if path.startswith((".", "/", "~")):
        return True
    return place.suffix in SUFFIXES and (len(place.parts) < 3 or Path(place.parts[0]).is_dir())


def format_ahead(path: str, format: str, strict: bool) -> str:
    """The format of a source by its first row that can be read; the hub is not asked.

    Args:
        path: See `open_source`.
        format: One of FORMATS, or `auto`.
        strict: Refuse a first row in no known format.

    Raises:
        DataError: nothing there, or a first row in no known format.
    """
    if format != "auto":
        return format
    if not Path(path).exists() and not is_local_name(path):
        return "from the hub"
    fields = next((raw.fields for raw in open_source(path, 1) if raw.fields is not None), None)
    if fields is None:
        return "unreadable at first"
    try:
        return detect(fields)
    except DataError:
        if strict:
            raise
        return "its first row in no known format"


def _check_file(file: Path) -> None:
    if not file.stat().st_size:
        raise DataError(f"{file} is empty", "give a file with at least one row")
    if file.suffix == ".parquet":
        try:
            pq.ParquetFile(file).close()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"can't read {file}: {_first_line(error)}", "it is no whole Parquet file") from None


def _reader(file: Path) -> Callable[[Path], Iterator[Entry]]:
    if file.suffix == ".json":
        with open(file, "rb") as opened:
            start = opened.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return json_array_entries if start == b"[" else json_line_entries
    return {".jsonl": json_line_entries, ".csv": csv_entries, ".parquet": _parquet_entries}[file.suffix]


def _parquet_entries(file: Path) -> Iterator[Entry]:
    number = 0
    try:
        # Without pre_buffer a column chunk is read as it is needed, not a whole row group at once.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as table:
            for batch in table.iter_batches(PARQUET_ROWS_AT_ONCE):
                for entry in _batch_entries(batch, number):
                    number += 1
                    yield entry
    except (pa.ArrowException, OSError) as error:
        yield Entry(number + 1, None, f"it and what follows can't be read: {_first_line(error)}")


def _batch_entries(batch: pa.RecordBatch, before: int) -> Iterator[Entry]:
    """Rows of a batch that follows `before` others; one with a value that Python can't hold has no fields."""
    try:
        yield from [Entry(number, fields, None) for number, fields in enumerate(batch.to_pylist(), before + 1)]
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            what = "a text in it is not UTF-8" if isinstance(error, UnicodeDecodeError) else _first_line(error)
            yield Entry(before + 1, None, what)
            return
        for place in range(len(batch)):
            yield from _batch_entries(batch.slice(place, 1), before + place)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
