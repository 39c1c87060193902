"""Limits on rows before training: their number, one kind, and token lengths, counted without decoding pictures."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from PIL import Image as PILImage

from prism_cli.data.rows import undecoded
from prism_cli.errors import DataError

# Pictures are read with their rows, so not too many.
ROWS_AT_ONCE = 256


def token_lengths(data: Dataset, processor: Any, texts: Sequence[str | None] | None = None) -> list[int]:
    """Tokens of each row's prompt with its images, and of `texts` as the response if given.

    Args:
        data: Rows.
        processor: The policy's processor; its pixel budget decides the image tokens.
        texts: One response a row, or None.
    """
    raw = undecoded(data)
    lengths: list[int] = []
    for start in range(0, len(raw), ROWS_AT_ONCE):
        rows = raw[start : start + ROWS_AT_ONCE]
        sizes = [[_size(image) for image in images] for images in rows["images"]]
        some = None if texts is None else texts[start : start + ROWS_AT_ONCE]
        lengths += count_tokens(rows["prompt"], sizes, processor, some)
    return lengths


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height, from the head of the file alone."""
    with PILImage.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as opened:
        return opened.size


def count_tokens(
    prompts: Sequence[Sequence[Mapping[str, str]]],
    sizes: Sequence[Sequence[tuple[int, int]]],
    processor: Any,
    texts: Sequence[str | None] | None = None,
) -> list[int]:
    """As `token_lengths`, for rows whose pictures' (width, height) are known."""
    tokenizer = processor.tokenizer
    chats = [
        processor.apply_chat_template(
            [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in prompt],
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    lengths = [len(ids) for ids in tokenizer(chats, add_special_tokens=False)["input_ids"]]
    if texts is not None:
        responses = tokenizer([text or "" for text in texts], add_special_tokens=False)["input_ids"]
        lengths = [length + len(ids) + 1 for length, ids in zip(lengths, responses, strict=True)]
    flat = [(height, width) for row in sizes for width, height in row]
    counts = iter(processor._get_num_multimodal_tokens(image_sizes=flat).num_image_tokens if flat else [])
    # Two marks stand around each image.
    return [length + sum(next(counts) + 2 for _ in row) for length, row in zip(lengths, sizes, strict=True)]


def why_over_long(row: Mapping[str, Any], processor: Any, limit: int, setting: str) -> str | None:
    """The problem of a row that is too long with its demonstration, or None."""
    sizes = [_size(image) for image in row["images"]]
    (length,) = count_tokens([row["prompt"]], [sizes], processor, [row["demonstration"]])
    return f"{length} tokens, more than {setting} = {limit}" if length > limit else None


def refuse_over_long(
    data: Dataset, processor: Any, limit: int, setting: str, texts: Sequence[str | None] | None = None
) -> None:
    """Stops on rows longer than `limit` tokens: cutting one would cut its image or its answer.

    Raises:
        DataError: names the rows and the setting.
    """
    lengths = token_lengths(data, processor, texts)
    long = [(id, length) for id, length in zip(data["id"], lengths, strict=True) if length > limit]
    if long:
        named = ", ".join(f"{id} ({length} tokens)" for id, length in long[:5])
        raise DataError(
            f"{len(long)} of {len(lengths)} rows are longer than {setting} = {limit}: {named}",
            f"raise {setting}, lower image.max_pixels, or drop these rows",
        )


def refuse_too_few(data: Dataset, needed: int) -> None:
    """Stops on data that don't fill one step.

    Raises:
        DataError: fewer rows than a step takes.
    """
    if len(data) < needed:
        raise DataError(f"{len(data)} rows don't fill a step of {needed}", "give more rows, or take fewer a step")


def refuse_mixed(data: Dataset) -> None:
    """Stops on rows with pictures beside rows without: a rollout batch must be of one kind.

    Raises:
        DataError: names a row of the smaller kind.
    """
    raw = undecoded(data)
    counts = [
        len(images)
        for start in range(0, len(raw), ROWS_AT_ONCE)
        for images in raw[start : start + ROWS_AT_ONCE]["images"]
    ]
    without = [id for id, count in zip(data["id"], counts, strict=True) if not count]
    if 0 < len(without) < len(counts):
        raise DataError(
            f"{len(without)} of {len(counts)} rows have no picture, the first is {without[0]}",
            "give every row a picture, or none: rollouts of both kinds can't share a batch yet",
        )


def refuse_unanswered(*sources: Dataset) -> None:
    """Refuses rows without a teacher's answer, where the answers stand in the data.

    Args:
        sources: Rows.

    Raises:
        DataError: naming the first one.
    """
    for rows in sources:
        missing = [id for id, text in zip(rows["id"], rows["teacher_response"], strict=True) if not text]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(rows)} rows have no teacher_response, the first is {missing[0]}",
                "fill the column, drop these rows, or give --teacher-endpoint URL",
            )
