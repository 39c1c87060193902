"""The one shape of a data row inside PRISM, whatever it was read from.

Columns: `id`, `source` (the name of its set in a mixture, else ""), `prompt` (messages, text only, the question last),
`images`, `answers` (accepted final answers, may be empty), `teacher_response`, `student_response` (a policy's, in
warm-up pairs), `caption` (what a text-only teacher is told of the picture), `demonstration` (the text SFT learns) and
`truth` (what a synthetic world knows); the last five may be None.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from prism_cli.errors import DataError

_MESSAGES = List({"role": Value("string"), "content": Value("string")})
FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "prompt": _MESSAGES,
        "images": List(Image()),
        "answers": List(Value("string")),
        "teacher_response": Value("string"),
        "student_response": Value("string"),
        "caption": Value("string"),
        "demonstration": Value("string"),
        "truth": Value("string"),
    }
)


def row(
    id: str,
    question: str,
    images: Sequence[PILImage.Image | bytes],
    *,
    system: str | None = None,
    answers: Sequence[str] = (),
    teacher_response: str | None = None,
    student_response: str | None = None,
    caption: str | None = None,
    demonstration: str | None = None,
    truth: str | None = None,
) -> dict[str, Any]:
    """One row; images as PIL pictures or as the bytes of their files."""
    prompt = [{"role": "system", "content": system}] if system else []
    return {
        "id": id,
        "source": "",
        "prompt": [*prompt, {"role": "user", "content": question}],
        "images": [{"bytes": image if isinstance(image, bytes) else png(image), "path": None} for image in images],
        "answers": list(answers),
        "teacher_response": teacher_response,
        "student_response": student_response,
        "caption": caption,
        "demonstration": demonstration,
        "truth": truth,
    }


def dataset(rows: Iterable[dict[str, Any]]) -> Dataset:
    """A data set of rows."""
    rows = list(rows)
    return Dataset.from_dict({name: [r[name] for r in rows] for name in FEATURES}, features=FEATURES)


def with_instruction(data: Dataset, instruction: str | None) -> Dataset:
    """Puts the instruction in front of each prompt as its system message; a row's own system message stays and wins."""
    if instruction is None:
        return data
    system = [{"role": "system", "content": instruction}]
    prompts = [p if p[0]["role"] == "system" else [*system, *p] for p in data["prompt"]]
    features = data.features
    return data.remove_columns("prompt").add_column("prompt", prompts, feature=features["prompt"])


def without_instruction(row: dict[str, Any], instruction: str | None) -> dict[str, Any]:
    """The row as its source has it: who learns from it puts an instruction of their own in front."""
    first, *rest = row["prompt"]
    added = first["role"] == "system" and first["content"] == instruction
    return {**row, "prompt": rest} if added else row


def undecoded(data: Dataset) -> Dataset:
    """The same rows with pictures as `{"bytes", "path"}`, as they were read."""
    raw = data.with_format(None)
    # Casting the column says the same, but writes every picture once more.
    raw.info.features = Features({**data.features, "images": List(Image(decode=False))})
    return raw


def raw_rows(data: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of `undecoded`, one by one."""
    yield from cast("Iterable[dict[str, Any]]", undecoded(data))


def rows_by_id(*sources: Dataset) -> Callable[[str], dict[str, Any]]:
    """A look-up of rows by their id; each is read, its pictures undecoded, when it is asked for.

    Args:
        sources: Data sets; an id may stand in several, with one and the same row.

    Raises:
        DataError: two different rows have one id.
    """
    places: dict[str, tuple[Dataset, int]] = {}
    for data in map(undecoded, sources):
        for index, id in enumerate(data["id"]):
            if id in places and places[id][0][places[id][1]] != data[index]:
                raise DataError(f"two rows have the id {id}, one in each data set", "give each row an `id` of its own")
            places[id] = (data, index)

    def row_of(id: str) -> dict[str, Any]:
        data, index = places[id]
        return data[index]

    return row_of


def has_pictures(data: Dataset) -> bool:
    """Whether any row has a picture; reads none."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(data.data["images"])  # pyright: ignore[reportAttributeAccessIssue]
    return bool(pc.max(lengths).as_py())  # pyright: ignore[reportAttributeAccessIssue]


def png(image: PILImage.Image) -> bytes:
    """The picture as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
