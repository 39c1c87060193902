"""Rows from files: JSONL, JSON, CSV and Parquet, or a hub data set; images only from inside the data's own folder."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from PIL import Image as PILImage

from prism_cli.data.rows import dataset, row
from prism_cli.errors import DataError

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
IMAGE_MARK = "<image>"
IMAGE_ITEMS = ("image", "image_url")


def load_rows(path: str, split: str = "train", limit: int | None = None) -> Dataset:
    """Reads a data set into rows (`data.rows`).

    A source row has `image` or `images` (paths inside the data's folder, or bytes) and either `question` (with `answer`
    or `answers`), or `prompt` (with `completion`), or `messages` whose last turn is the demonstration.

    Args:
        path: File, or hub id.
        split: Split of a hub data set.
        limit: Read at most this many rows.

    Raises:
        DataError: nothing there, or rows that can't be used; every bad row is named.
    """
    source, folder = _open(path, split)
    if limit is not None:
        source = source.select(range(min(limit, len(source))))
    rows, problems = [], []
    for number, fields in enumerate(_undecoded(source)):
        try:
            rows.append(_row(f"{Path(path).stem}-{number}", fields, folder))
        except DataError as error:
            problems.append(f"{path} row {number}: {error}")
    repeated = [id for id, count in Counter(found["id"] for found in rows).items() if count > 1]
    problems += [f"{path}: several rows have the id {id!r}" for id in repeated]
    if problems:
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise DataError("\n  ".join(problems[:20]) + more, "mend or drop these rows")
    if not rows:
        raise DataError(f"{path} has no rows", "give a file with at least one row")
    return dataset(rows)


def _open(path: str, split: str) -> tuple[Dataset, Path | None]:
    file = Path(path)
    try:
        if file.is_file():
            if file.suffix not in LOADERS:
                raise DataError(f"{path}: {file.suffix or 'no'} suffix is not known", f"one of {', '.join(LOADERS)}")
            if not file.stat().st_size:
                raise DataError(f"{path} is empty", "give a file with at least one row")
            return load_dataset(LOADERS[file.suffix], data_files=str(file), split="train"), file.parent.resolve()
        if file.is_dir():
            raise DataError(f"{path} is a folder", "give the data file inside it")
        if path.startswith((".", "/")) or file.suffix in LOADERS:
            raise DataError(f"no file {path}", "check data.path or --data")
        return load_dataset(path, split=split), None
    except DatasetGenerationError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise DataError(f"can't read {path}: {reason}", f"mend the file; it should be {file.suffix[1:]}") from None
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        raise DataError(f"can't read {path}: {str(error).splitlines()[0]}", "check data.path or --data") from None


def _undecoded(source: Dataset) -> Iterator[Any]:
    """Rows with image columns as bytes, so that the teacher is sent what the file holds."""
    for name, feature in source.features.items():
        if isinstance(feature, Image):
            source = source.cast_column(name, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image):
            source = source.cast_column(name, type(feature)(Image(decode=False)))
    return iter(source)


def _row(id: str, fields: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    images = [_picture(value, folder) for value in _listed(fields.get("images") or fields.get("image"))]
    try:
        system, question, demonstration = _texts(fields)
    except (AttributeError, KeyError, TypeError):
        raise DataError("its messages are no turns of `role` and `content`, or a text is none") from None
    marks = question.count(IMAGE_MARK)
    if marks and marks != len(images):
        raise DataError(f"{marks} {IMAGE_MARK} marks for {len(images)} images")
    items = sum(item.get("type") in IMAGE_ITEMS for turn in _turns(fields) for item in _items(turn["content"]))
    if items > len(images):
        raise DataError(f"{items} image items in its messages for {len(images)} in `images`; name them in `images`")
    answers = _listed(fields.get("answers") or fields.get("answer"))
    return row(
        str(fields.get("id") or id),
        question.replace(IMAGE_MARK, "").strip(),
        images,
        system=system,
        answers=[str(answer) for answer in answers],
        teacher_response=fields.get("teacher_response"),
        demonstration=demonstration,
    )


def _texts(fields: dict[str, Any]) -> tuple[str | None, str, str | None]:
    """System message, question and demonstration of a source row."""
    if fields.get("question"):
        return None, fields["question"], fields.get("response")
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if messages := fields.get("messages"):
        answered = messages[-1]["role"] == "assistant"
        prompt, completion = (messages[:-1], messages[-1]) if answered else (messages, None)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not prompt:
        raise DataError("no question; give `question`, `prompt` or `messages`")
    turns = [(turn["role"], _plain(turn["content"])) for turn in prompt]
    system = next((text for role, text in turns if role == "system"), None)
    users = [text for role, text in turns if role == "user"]
    if len(users) != 1 or len(turns) > 1 + (system is not None):
        raise DataError(f"one user turn is expected, found turns {[role for role, _ in turns]}")
    last = completion[-1] if isinstance(completion, list) else completion
    return system, users[0], _plain(last["content"]) if isinstance(last, dict) else last


def _turns(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The prompt's turns, where it is written as turns."""
    turns = fields.get("messages") or fields.get("prompt")
    return turns if isinstance(turns, list) else []


def _items(content: Any) -> list[dict[str, Any]]:
    """A message's items, where it is written as items."""
    return content if isinstance(content, list) else []


def _plain(content: Any) -> str:
    """A message's text; image items stand for the images column."""
    if isinstance(content, str):
        return content
    return " ".join(item["text"] for item in content if item.get("type") == "text" and item.get("text"))


def _picture(value: Any, folder: Path | None) -> bytes:
    """The bytes of an image, which must be one; only its head is read."""
    data = _image(value, folder)
    try:
        PILImage.open(io.BytesIO(data))
    except (OSError, PILImage.DecompressionBombError):
        raise DataError(f"image {value!r} is no picture" if isinstance(value, str) else "image is no picture") from None
    return data


def _image(value: Any, folder: Path | None) -> bytes:
    """The bytes of an image: given as bytes, or as a path that must lie inside the data's folder.

    What is read is sent to the teacher, so a row may not name any other file of this machine.
    """
    if isinstance(value, dict):
        if value.get("bytes"):
            return value["bytes"]
        value = value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or folder is None:
        found = json.dumps(value, default=str)[:60]
        raise DataError(f"image is {found}; give bytes or a path inside the data's folder")
    file = (folder / value).resolve()
    if not file.is_relative_to(folder):
        raise DataError(f"image {value!r} leaves the data's folder")
    if not file.is_file():
        raise DataError(f"image {value!r} does not exist")
    return file.read_bytes()


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
