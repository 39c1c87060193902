"""Writes the rows that passed the check as a set of its own, and why the others were left out."""

import csv
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prism_cli.data.formats import parse
from prism_cli.data.images import ImageReader
from prism_cli.data.preflight import Problem
from prism_cli.data.sources import RawRow, Source, open_source
from prism_cli.data.survey import DUPLICATE, Report
from prism_cli.errors import DataError

PARQUET_ROWS = 128

Rows = Iterator[dict[str, Any]]


def check_target(path: str, out: Path) -> None:
    """Refuses, before the work, what could not be written after it.

    Raises:
        DataError: `out` holds something, or the source is no local set of one kind of file.
    """
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


def write_clean(report: Report, out: Path, limit: int | None = None) -> tuple[Path, int]:
    """Writes the usable rows, without repetitions, in the source's format and fields; gives the file and their number.

    Local pictures keep their relative paths: they are linked into the folder, or copied where links can't be. The rows
    left out stand in rejected.jsonl with all that is wrong with them. A kill leaves no folder that looks whole.

    Args:
        report: Of `survey.check_source`, for the same source and limit.
        out: A folder that does not exist or is empty.
        limit: As it was checked.

    Raises:
        DataError: no row is usable, or a picture's path can't be kept.
    """
    reasons: dict[tuple[str, int], list[Problem]] = defaultdict(list)
    for problem in report.problems:
        reasons[problem.file, problem.row].append(problem)
    rejected = report.unusable | {(p.file, p.row) for p in report.problems if p.kind == DUPLICATE}
    if len(rejected) == report.rows:
        raise DataError(f"no row of {report.source} is usable", "mend the rows; nothing was written")
    source = open_source(report.source, limit)
    with _folder(out) as folder:
        kept = (raw for raw in source if (raw.file, raw.number) not in rejected)
        name = _clean_name(source.files[0])
        _writer(name)(folder / name, _with_pictures(kept, report.formats, folder), source)
        with open(folder / "rejected.jsonl", "w", encoding="utf-8") as file:
            for place, problems in reasons.items():
                if place in rejected:
                    file.write(_rejection(*place, problems) + "\n")
    return out / name, report.rows - len(rejected)


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place once it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rejection(file: str, row: int, problems: list[Problem]) -> str:
    reasons = [f"{problem.field}: {problem.what}" for problem in problems]
    return json.dumps({"file": file, "row": row, "reasons": reasons}, ensure_ascii=False)


# Pictures ------------------------------------------------------------------------------------------------------------


def _with_pictures(rows: Iterator[RawRow], formats: Mapping[str, str], folder: Path) -> Rows:
    """The rows' fields; the local pictures they name are put into the folder on the way."""
    for raw in rows:
        assert raw.fields is not None, "a row without fields was rejected"
        for reference in parse(formats[raw.file], raw.fields).images:
            if (name := _local_name(reference)) is not None:
                _bring(ImageReader(raw.folder).local_file(name), name, folder)
        yield raw.fields


def _local_name(reference: Any) -> str | None:
    if isinstance(reference, Mapping):
        reference = None if reference.get("bytes") else reference.get("path") or reference.get("url")
    return (
        reference
        if isinstance(reference, str) and not reference.startswith("data:") and "://" not in reference
        else None
    )


def _bring(picture: Path, name: str, folder: Path) -> None:
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise DataError(
            f"picture {name!r} would not lie in the new folder", "write paths relative to the data's folder"
        )
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(picture, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(picture, target)


# Writers -------------------------------------------------------------------------------------------------------------


def _clean_name(file: Path) -> str:
    return "clean.jsonl" if file.suffix in (".json", ".jsonl") else f"clean{file.suffix}"


def _writer(name: str) -> Callable[[Path, Rows, Source], None]:
    return {"clean.jsonl": _write_json_lines, "clean.csv": _write_csv, "clean.parquet": _write_parquet}[name]


def _write_json_lines(path: Path, rows: Rows, source: Source) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for fields in rows:
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def _write_csv(path: Path, rows: Rows, source: Source) -> None:
    names = list(dict.fromkeys(name for file in source.files for name in _header(file)))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _header(file: Path) -> list[str]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        return next(csv.reader(lines))


def _write_parquet(path: Path, rows: Rows, source: Source) -> None:
    schema = pa.unify_schemas([pq.read_schema(file) for file in source.files], promote_options="permissive")
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, PARQUET_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema))
