"""Rows of text files: JSON Lines and CSV, row by row, and JSON arrays; a broken row is a problem, not the end."""

import csv
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.errors import DataError

# Bytes of a file that is one array: about a tenth of the memory its values take.
LARGEST_ARRAY = 1 << 28
# A picture of 50 MB may stand in a field as a data URL; what an unclosed quote swallows must end somewhere.
LONGEST_FIELD = 1 << 27
DEEPEST = 100
TOO_DEEP = "its JSON is nested too deep"
# CSV has no lists, so these columns may hold one in JSON.
LISTS = ("answers", "image", "images")


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
                yield _entry(number, json_value(line.rstrip(b"\r\n").decode()))
            except UnicodeDecodeError as error:
                yield Entry(number, None, f"it is not UTF-8 (byte {error.start + 1})")
            except ValueError as error:
                yield Entry(number, None, str(error))


def json_value(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or a value in it can't be used; the message says what it is.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except ValueError as error:
        raise ValueError(_of_number(error)) from None
    if (fault := _fault(value)) is not None:
        raise ValueError(fault)
    return value


def _of_number(error: ValueError) -> str:
    return f"a number in it has too many digits ({str(error).partition(';')[0]})"


def _fault(value: Any, depth: int = DEEPEST) -> str | None:
    """The fault of a value that JSON allows and that can't be used, or None."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "half a character stands in it, a surrogate alone"
    if not isinstance(value, list | dict):
        return None
    if not depth:
        return TOO_DEEP
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return next(filter(None, (_fault(item, depth - 1) for item in inner)), None)


def json_array_entries(file: Path) -> Iterator[Entry]:
    """Rows of a file that is one JSON array, numbered from 1; it is read as one.

    Raises:
        DataError: it is too large for that, or not JSON.
    """
    if file.stat().st_size > LARGEST_ARRAY:
        size = f"{file.stat().st_size / 1e9:.1f} GB"
        raise DataError(f"{file} is one JSON array of {size}, which would be held in memory at once", _convert(file))
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        reason = f"{error.msg} (line {error.lineno}, column {error.colno})"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte {error.start + 1})"
    except RecursionError:
        reason = TOO_DEEP
    except ValueError as error:
        reason = _of_number(error)
    else:
        for number, value in enumerate(values, 1):
            fault = _fault(value)
            yield _entry(number, value) if fault is None else Entry(number, None, fault)
        return
    raise DataError(f"can't read {file}: {reason}", "mend it there, or write JSON Lines: one bad line is one bad row")


def _convert(file: Path) -> str:
    name = shlex.quote(str(file))
    return f"write it as JSON Lines, which are read row by row: jq -c '.[]' {name} > {shlex.quote(f'{file}l')}"


def csv_entries(file: Path) -> Iterator[Entry]:
    """Rows of a CSV file with a header, numbered by the line they begin at."""
    csv.field_size_limit(LONGEST_FIELD)
    names: list[str] | None = None
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        while True:
            begins = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                until = f" (lines {begins} to {reader.line_num} are lost)" if reader.line_num > begins else ""
                yield Entry(begins, None, f"it is not CSV: {error}{until}")
                if names is None:
                    return  # without a header the next row would be taken for it
                continue
            if not values:
                continue
            if names is not None:
                yield _csv_entry(begins, names, values)
            elif _fault(values) is None:
                names = values
            else:
                yield Entry(begins, None, "the header is not UTF-8, so nothing can be read")
                return


def csv_header(file: Path) -> list[str]:
    """The names of a CSV file's columns.

    Raises:
        ValueError: it is not UTF-8.
    """
    with open(file, encoding="utf-8-sig", newline="") as lines:
        return next(filter(None, csv.reader(lines)), [])


def _csv_entry(number: int, names: list[str], values: list[str]) -> Entry:
    if len(values) > len(names):
        return Entry(number, None, "it has more values than the header has names")
    if _fault(values) is not None:
        return Entry(number, None, "it is not UTF-8")
    fields: dict[str, Any] = dict.fromkeys(names)
    fields.update((name, value) for name, value in zip(names, values, strict=False) if value)
    for name in LISTS:
        if (fields.get(name) or "").startswith("["):
            try:
                fields[name] = json_value(fields[name])
            except ValueError:
                continue  # a text that begins so
    return Entry(number, fields, None)


def _entry(number: int, value: Any) -> Entry:
    if not isinstance(value, dict):
        return Entry(number, None, f"expected an object of columns, found {json.dumps(value)[:60]}")
    return Entry(number, value, None)
