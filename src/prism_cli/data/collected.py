"""Sets we write: demonstrations as one Parquet file, prompts and warm-up pairs as JSON lines with picture files."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from prism_cli.endpoint.pictures import image_bytes
from prism_cli.responses import Response

_MESSAGES = List({"role": Value("string"), "content": Value("string")})
DEMONSTRATION = Features(
    {
        "id": Value("string"),
        "prompt": _MESSAGES,
        "completion": _MESSAGES,
        "images": List(Image()),
        "answers": List(Value("string")),
        "teacher_response": Value("string"),
    }
)
# Pictures of so many rows are in memory at a time.
ROWS_A_GROUP = 64
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"}

# The columns of published pairs, for the grammar they are published in.
PUBLISHED = {"perception": "caption", "reasoning": "cot"}


class DemonstrationsFile:
    """A context that writes demonstrations in TRL's conversational form, pictures inside; the file is there at its end.

    Args:
        path: The Parquet file; an older one is replaced once the new one is whole.

    Attributes:
        count: Rows written.
    """

    def __init__(self, path: Path):
        self.count = 0
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._partial, DEMONSTRATION.arrow_schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink()

    def add(self, id: str, row: Mapping[str, Any], text: str) -> None:
        """Writes a row's prompt, pictures and answers with a text that is its demonstration.

        Args:
            id: Unique in the file.
            row: `data.rows`' shape, pictures as `{"bytes", "path"}`.
            text: What the teacher answered.
        """
        self.count += 1
        self._waiting.append(
            {
                "id": id,
                "prompt": row["prompt"],
                "completion": [{"role": "assistant", "content": text}],
                "images": [{"bytes": image_bytes(image), "path": None} for image in row["images"]],
                "answers": list(row["answers"]),
                "teacher_response": text,
            }
        )
        if len(self._waiting) == ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=DEMONSTRATION.arrow_schema))
            self._waiting = []


class PromptsFile:
    """A context that writes prompts with other columns, a JSON line each, pictures as files in a folder beside it.

    Args:
        path: The JSONL file; an older one is replaced once the new one is whole.
        pictures: Name of the pictures' folder.

    Attributes:
        count: Lines written.
    """

    def __init__(self, path: Path, pictures: str):
        self.count = 0
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._pictures = pictures

    def __enter__(self) -> Self:
        (self._path.parent / self._pictures).mkdir(parents=True, exist_ok=True)
        self._file = open(self._partial, "w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink()

    def write(self, id: str, row: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        """Writes a row's prompt, pictures and answers.

        Args:
            id: Unique in the file.
            row: `data.rows`' shape, pictures as `{"bytes", "path"}`.
            columns: What else its line says.
        """
        self.count += 1
        images = [self._picture(image_bytes(image)) for image in row["images"]]
        named = {"image": images[0]} if len(images) == 1 else {"images": images} if images else {}
        line = {"id": id, "prompt": _prompt(row["prompt"]), **named, "answers": list(row["answers"]), **columns}
        self._file.write(f"{json.dumps(line, ensure_ascii=False)}\n")

    def _picture(self, data: bytes) -> str:
        """Writes a picture, each one once, and gives its name relative to the file."""
        suffix = next((suffix for start, suffix in SUFFIXES.items() if data.startswith(start)), ".png")
        name = f"{self._pictures}/{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
        path = self._path.parent / name
        if not path.exists():
            partial = path.with_name(f".{path.name}.partial")  # a kill must not leave half a picture under the name
            partial.write_bytes(data)
            os.replace(partial, path)
        return name


class PairsFile(PromptsFile):
    """A context that writes warm-up pairs as published: a line a pair, pictures as files in `images/` beside it.

    Args:
        path: The JSONL file; an older one is replaced once the new one is whole.

    Attributes:
        count: Pairs written.
    """

    def __init__(self, path: Path):
        super().__init__(path, "images")

    def add(self, id: str, row: Mapping[str, Any], teacher: Mapping[str, str], student: Mapping[str, str]) -> None:
        """Writes a pair.

        Args:
            id: Unique in the file.
            row: `data.rows`' shape, pictures as `{"bytes", "path"}`.
            teacher: Suffix of the column (`caption`, `cot`, `response`) → the teacher's text.
            student: The same of the policy.
        """
        columns = {f"{who}_{name}": text for who, texts in (("teacher", teacher), ("student", student))
                   for name, text in texts.items()}  # fmt: skip
        self.write(id, row, columns)


def _prompt(turns: Sequence[Mapping[str, str]]) -> Any:
    """A question alone as published, a text; a conversation as its turns."""
    return turns[0]["content"] if len(turns) == 1 else [dict(turn) for turn in turns]


def pair_columns(text: str, response: Response) -> dict[str, str]:
    """One side's columns of a row of pairs.

    Args:
        text: The response as it was written, which is what a discriminator must read.
        response: The same parsed; where its parts are those of the published pairs, their columns are added, without
            the white space beside tags.
    """
    parts = response.parts if response.parts.keys() == PUBLISHED.keys() else {}
    return {"response": text.strip(), **{PUBLISHED[name]: part for name, part in parts.items()}}
