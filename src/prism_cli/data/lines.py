"""Rows of text files: JSON Lines, JSON arrays and CSV, read bit by bit; a broken row is told, not the end."""

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

BLANKS = re.compile(r"\s*")
CHUNK = 1 << 18
LONGEST_ROW = 1 << 28


class Entry(NamedTuple):
    """A row of a file: its line or place from 1, and its columns, or why there are none."""

    number: int
    fields: dict[str, Any] | None
    problem: str | None


def json_line_entries(file: Path) -> Iterator[Entry]:
    """Rows of a JSON Lines file, numbered by line; blank lines are passed over."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            try:
                yield _entry(number, json.loads(line.rstrip(b"\r\n").decode()))
            except UnicodeDecodeError as error:
                yield Entry(number, None, f"it is not UTF-8 (byte {error.start + 1})")
            except json.JSONDecodeError as error:
                yield Entry(number, None, f"it is not JSON: {error.msg} (column {error.colno})")
            except RecursionError:
                yield Entry(number, None, "its JSON is nested too deep")


def json_array_entries(file: Path) -> Iterator[Entry]:
    """Rows of a file that is one JSON array, numbered from 1; after a broken one nothing can be told apart."""
    number = 0
    with open(file, encoding="utf-8-sig") as chunks:
        try:
            for number, value in enumerate(_array_values(chunks), 1):
                yield _entry(number, value)
        except UnicodeDecodeError:
            yield Entry(number + 1, None, "it or what follows is not UTF-8")
        except json.JSONDecodeError as error:
            yield Entry(number + 1, None, f"it and what follows is not JSON: {error.msg}")
        except RecursionError:
            yield Entry(number + 1, None, "its JSON is nested too deep, so what follows can't be read")


def _array_values(chunks: TextIO) -> Iterator[Any]:
    """The values of a JSON array; no more of it is held than one value and a chunk."""
    decoder = json.JSONDecoder()
    text, at, expected = "", 0, "["
    while True:
        at = BLANKS.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]  (nothing is blank, too)
        broken = json.JSONDecodeError(f"Expecting {expected or 'value'}", text, at)
        if expected and text[at : at + 1] in expected and at < len(text):
            if text[at] == "]":
                return
            at, expected = at + 1, "]" if expected == "[" else ""
            continue
        if expected in ("", "]"):  # a value; at the array's beginning its end, too
            try:
                value, end = decoder.raw_decode(text, at)
                if end < len(text):  # else a number may go on in the next chunk
                    yield value
                    at, expected = end, ",]"
                    continue
            except json.JSONDecodeError as error:
                broken = error
        elif at < len(text):
            raise broken
        # As much again as is held, so that a long row is not tried for each chunk of it.
        more = "" if len(text) - at > LONGEST_ROW else chunks.read(max(CHUNK, len(text) - at))
        if not more:
            raise broken
        text, at = text[at:] + more, 0


def csv_entries(file: Path) -> Iterator[Entry]:
    """Rows of a CSV file with a header, numbered by the line they begin at."""
    csv.field_size_limit(sys.maxsize)  # pictures may stand in it as data URLs
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Entry(reader.reader.line_num, None, f"it is not CSV: {error}")
                if reader.reader.line_num == 1:
                    return  # without a header the next row would be taken for it
                continue
            lines_within = sum(value.count("\n") for value in fields.values() if isinstance(value, str))
            yield _csv_entry(reader.line_num - lines_within, fields)


def _csv_entry(number: int, fields: dict[str | None, Any]) -> Entry:
    if None in fields:
        return Entry(number, None, "it has more values than the header has names")
    try:
        "".join(value for value in fields.values() if value).encode()
    except UnicodeEncodeError:
        return Entry(number, None, "it is not UTF-8")
    return Entry(number, {str(name): value or None for name, value in fields.items()}, None)


def _entry(number: int, value: Any) -> Entry:
    if not isinstance(value, dict):
        return Entry(number, None, f"expected an object of columns, found {json.dumps(value)[:60]}")
    return Entry(number, value, None)
