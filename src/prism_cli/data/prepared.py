"""Rows read and checked once, then kept memory-mapped: the next start takes them in a blink."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset

from prism_cli.data.preflight import Problem
from prism_cli.data.reading import LocalPicture, RowReader
from prism_cli.data.rows import FEATURES
from prism_cli.runs.locks import held

# Goes up when rows of the same source would come out otherwise.
ROWS_VERSION = 2
ROWS_AT_ONCE, BYTES_AT_ONCE = 256, 1 << 26
MOST_PROBLEMS = 10_000

Progress = Callable[[int, int | None], None]


class Loaded(NamedTuple):
    """Rows that were read.

    Attributes:
        rows: The rows that can be used (`data.rows`), memory-mapped when they are kept.
        format: How they are written, one of FORMATS; several files may differ.
        problems: What is wrong with rows, errors first; at most 10,000 errors and as many warnings.
        skipped: How many rows can't be used.
    """

    rows: Dataset
    format: str
    problems: list[Problem]
    skipped: int


class _Findings:
    """Problems and counts of a reading, beside its rows."""

    def __init__(self):
        self.problems: dict[str, list[Problem]] = {"error": [], "warning": []}
        self.skipped = 0
        self.again = False

    def add(self, problems: list[Problem], usable: bool, fetched: bool) -> None:
        for problem in problems:
            if len(self.problems[problem.severity]) < MOST_PROBLEMS:
                self.problems[problem.severity].append(problem)
        self.skipped += not usable
        self.again = self.again or (fetched and not usable)  # the host may answer the next time

    @property
    def all(self) -> list[Problem]:
        return [*self.problems["error"], *self.problems["warning"]]


def prepare(reader: RowReader, progress: Progress) -> Loaded:
    """Reads everything into memory.

    Args:
        reader: Gives the rows.
        progress: Called with how many rows were read, and of how many if that is known.
    """
    batches: list[pa.RecordBatch] = []
    found = _read(reader, batches.append, lambda picture: None, progress)
    table = pa.Table.from_batches(batches, FEATURES.arrow_schema)
    return Loaded(Dataset(table), ", ".join(reader.formats), found.all, found.skipped)


def prepared(folder: Path, reader: RowReader, progress: Progress) -> Loaded:
    """The rows kept in `folder` by an earlier start, if no picture has changed; else reads and keeps them.

    Args:
        folder: Named after all that shapes the rows: the options, `-`, and the state that the source is in. What was
            kept for the same options and an earlier state is removed.
        reader: Gives the rows.
        progress: As for `prepare`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two starts on the same rows: the second waits for what the first prepares.
    with held(folder.with_suffix(".lock"), wait=True):
        if not _is_current(folder):
            _write(folder, reader, progress)
        return _opened(folder)


def _read(
    reader: RowReader,
    write: Callable[[pa.RecordBatch], None],
    saw: Callable[[LocalPicture], None],
    progress: Progress,
) -> _Findings:
    """Gives the usable rows to `write` by batches and the local pictures that all rows name to `saw`."""
    total, findings = reader.source.count(), _Findings()
    batch: list[dict[str, Any]] = []
    size = 0
    for done, read in enumerate(reader, 1):
        findings.add(read.problems, read.row is not None, read.fetched)
        for picture in read.pictures:
            saw(picture)
        if read.row is not None:
            batch.append(read.row)
            size += sum(len(image["bytes"] or b"") for image in read.row["images"])
        if len(batch) >= ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
            write(pa.RecordBatch.from_pylist(batch, schema=FEATURES.arrow_schema))
            batch, size = [], 0
        progress(done, total)
    if batch:
        write(pa.RecordBatch.from_pylist(batch, schema=FEATURES.arrow_schema))
    return findings


def _write(folder: Path, reader: RowReader, progress: Progress) -> None:
    """Writes beside `folder`, and moves what is whole there: what a kill leaves never counts."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with (
        pa.ipc.new_stream(str(partial / "rows.arrow"), FEATURES.arrow_schema) as stream,
        open(partial / "pictures.jsonl", "w", encoding="utf-8") as pictures,
    ):

        def saw(picture: LocalPicture) -> None:
            pictures.write(json.dumps(picture) + "\n")

        found = _read(reader, stream.write_batch, saw, progress)
    (partial / "problems.json").write_text(json.dumps(found.all), encoding="utf-8")
    about = {"format": ", ".join(reader.formats), "skipped": found.skipped, "again": found.again}
    (partial / "prepared.json").write_text(json.dumps({"source": reader.source.name, **about}), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    for older in folder.parent.glob(f"{folder.name.partition('-')[0]}-*"):
        if older.is_dir() and not older.suffix and older != folder:  # one with a suffix is being written
            shutil.rmtree(older)


def _is_current(folder: Path) -> bool:
    if not folder.is_dir() or json.loads((folder / "prepared.json").read_text(encoding="utf-8"))["again"]:
        return False
    with open(folder / "pictures.jsonl", encoding="utf-8") as lines:
        pictures = (LocalPicture(*json.loads(line)) for line in lines)
        return all(picture == LocalPicture.at(picture.name) for picture in pictures)


def _opened(folder: Path) -> Loaded:
    about = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    problems = [Problem(*fields) for fields in json.loads((folder / "problems.json").read_text(encoding="utf-8"))]
    return Loaded(Dataset.from_file(str(folder / "rows.arrow")), about["format"], problems, about["skipped"])
