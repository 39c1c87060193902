"""Writes the rows that passed the check as a set of its own, and why the others were left out."""

import csv
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prism_cli.data.formats import detect, parse
from prism_cli.data.lines import csv_header
from prism_cli.data.reading import reader_of
from prism_cli.data.sources import REJECTED, RawRow, Source, open_source
from prism_cli.data.survey import DUPLICATE, Report
from prism_cli.errors import DataError

PARQUET_ROWS = 128

Rows = Iterator[dict[str, Any]]


def check_target(path: str, out: Path) -> None:
    """Refuses, before the work, what could not be written after it.

    Raises:
        DataError: `out` holds something or can't be made, or the source is no local set of files that can be one.
    """
    above = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise DataError(f"{out} can't be made: {above} is no folder to write to", "name another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already", "name a folder that does not exist, or is empty")
    files = open_source(path).files
    if not files:
        raise DataError(
            f"{path} is no local set",
            "download it (`hf download NAME --repo-type dataset --local-dir DIR`), then fix it",
        )
    if len(kinds := {_clean_name(file) for file in files}) > 1:
        raise DataError(f"{path} mixes {' and '.join(sorted(kinds))}", "fix its files one by one")
    try:
        if kinds == {"clean.parquet"}:
            _schema(files)
        elif kinds == {"clean.csv"}:
            _columns(files)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"the columns of {path} can't be one file's: {reason}", "fix its files one by one") from None


def write_clean(report: Report, out: Path, limit: int | None = None) -> tuple[Path, int]:
    """Writes the usable rows, without repetitions, in the source's format and fields; gives the file and their number.

    Local pictures keep their relative paths: they are linked into the folder, or copied where links can't be. The rows
    left out stand in rejected.jsonl with all that is wrong with them. A kill leaves no folder that looks whole.

    Args:
        report: Of `survey.check_source`, for the same source and limit.
        out: A folder that does not exist or is empty.
        limit: As it was checked.

    Raises:
        DataError: no row is usable, or the source changed since it was checked.
    """
    source = open_source(report.source, limit)
    if source.fingerprint() != report.fingerprint:
        raise DataError(f"{report.source} changed since it was checked", "run the command again")
    reasons: dict[tuple[str, int], list[str]] = defaultdict(list)
    for problem in report.problems:
        reasons[problem.file, problem.row].append(f"{problem.field}: {problem.what}")
    rejected = report.unusable | {(p.file, p.row) for p in report.problems if p.kind == DUPLICATE}
    with _folder(out) as folder:
        kept, name = count(), _clean_name(source.files[0])
        # It is there before any picture, which might be called so.
        with open(folder / REJECTED, "x", encoding="utf-8") as others:

            def clean() -> Rows:
                pictures = _Pictures(folder)
                for raw in source:
                    place = raw.file, raw.number
                    why = reasons[place] if place in rejected else pictures.bring(raw, report.format)
                    if why:
                        values = {"file": raw.file, "row": raw.number, "reasons": why}
                        others.write(json.dumps(values, ensure_ascii=False) + "\n")
                    elif raw.fields is not None:
                        next(kept)
                        yield raw.fields

            _writer(name)(folder / name, clean(), source)
        if not (rows := next(kept)):
            raise DataError(f"no row of {report.source} is usable", "mend the rows; nothing was written")
    return out / name, rows


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place once it is whole."""
    out = out.resolve()  # the name of "." is ""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# Pictures ------------------------------------------------------------------------------------------------------------


class _Pictures:
    """Puts the local pictures that rows name into a folder."""

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        self._there: set[Path] = set()

    def bring(self, raw: RawRow, format: str) -> list[str]:
        """Puts a row's pictures there; gives why that can't be."""
        fields, reader = raw.fields or {}, reader_of(raw.folder, ())
        references = parse(detect(fields) if format == "auto" else format, fields).images
        names = [name for name in map(reader.local_name, references) if name is not None]
        try:
            for name in names:
                self._bring(reader.local_file(name), name)
        except DataError as error:
            return [f"image: {error}"]
        return []

    def _bring(self, picture: Path, name: str) -> None:
        target = (self._folder / name).resolve()
        if target in self._there:
            return
        if not target.is_relative_to(self._folder):
            raise DataError(f"{name!r} would not lie in the new folder: its path is not relative to the data's folder")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            taken = target.exists()
        except (FileExistsError, NotADirectoryError):
            taken = True
        if taken:
            raise DataError(f"{name!r} has the name of a file that is written here")
        try:
            os.link(picture, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(picture, target)
        self._there.add(target)


# Writers -------------------------------------------------------------------------------------------------------------


def _clean_name(file: Path) -> str:
    return "clean.jsonl" if file.suffix in (".json", ".jsonl") else f"clean{file.suffix}"


def _writer(name: str) -> Callable[[Path, Rows, Source], None]:
    return {"clean.jsonl": _write_json_lines, "clean.csv": _write_csv, "clean.parquet": _write_parquet}[name]


def _write_json_lines(path: Path, rows: Rows, source: Source) -> None:
    with open(path, "x", encoding="utf-8") as file:
        for fields in rows:
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def _write_csv(path: Path, rows: Rows, source: Source) -> None:
    with open(path, "x", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _columns(source.files))
        writer.writeheader()
        for fields in rows:
            writer.writerow({name: _csv_text(value) for name, value in fields.items()})


def _csv_text(value: Any) -> Any:
    """A list as the JSON it was read from."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _columns(files: Sequence[Path]) -> list[str]:
    return list(dict.fromkeys(name for file in files for name in csv_header(file)))


def _write_parquet(path: Path, rows: Rows, source: Source) -> None:
    schema = _schema(source.files)
    with open(path, "xb") as file, pq.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, PARQUET_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema))


def _schema(files: Sequence[Path]) -> pa.Schema:
    return pa.unify_schemas([pq.read_schema(file) for file in files], promote_options="permissive")
