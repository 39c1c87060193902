"""Rows as supervised fine-tuning takes them: prompt, completion and pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prism_cli.errors import DataError
from prism_cli.responses import Grammar

if TYPE_CHECKING:  # datasets costs seconds to import, and --dry-run needs none
    from datasets import Dataset, IterableDataset

    from prism_cli.data.file_rows import FileRows


def with_completions(data: "Dataset", texts: Sequence[str] | None, processor: Any, max_tokens: int) -> "Dataset":
    """Rows as prompt, completion, images and source.

    Args:
        data: The rows.
        texts: Their completions, or None for the rows' own demonstrations.
        processor: Counts tokens.
        max_tokens: Longest row, prompt with pictures and completion.

    Raises:
        DataError: rows without a completion, or over-long ones.
    """
    from prism_cli.data.lengths import refuse_over_long

    completions = data["demonstration"] if texts is None else texts
    if missing := [id for id, text in zip(data["id"], completions, strict=True) if not text]:
        raise DataError(
            f"{len(missing)} rows have no demonstration, the first is {missing[0]}",
            "give `messages`, `completion` or `response` in each row, or a `teacher:` to write them",
        )
    refuse_over_long(data, processor, max_tokens, "max_tokens", completions)
    columns = data.select_columns(["prompt", "images", "source", "demonstration"])
    if texts is None:
        return columns.rename_column("demonstration", "completion")
    return columns.remove_columns("demonstration").add_column("completion", list(texts))


def streamed_completions(
    file: "FileRows", instruction: str | None, processor: Any, max_tokens: int, seed: int
) -> "IterableDataset":
    """Rows of a file as prompt, completion and images, as they flow; over-long ones count as rows that can't be used.

    Args:
        file: Where they stand.
        instruction: System message for rows without one.
        processor: Counts tokens.
        max_tokens: Longest row, prompt with pictures and completion.
        seed: Of their order.
    """
    from prism_cli.data.lengths import why_over_long

    rows = file.stream(instruction, "sft", seed, lambda row: why_over_long(row, processor, max_tokens, "max_tokens"))
    return rows.rename_column("demonstration", "completion").select_columns(["prompt", "images", "completion"])


def refuse_malformed(texts: Sequence[str], ids: Sequence[str], grammar: Grammar) -> None:
    """Refuses teacher answers that don't keep the form: a policy learns what it is shown.

    Raises:
        DataError: with the first of them.
    """
    responses = [(id, grammar.parse(text)) for id, text in zip(ids, texts, strict=True)]
    malformed = [(id, response.problem) for id, response in responses if not response.well_formed]
    if malformed:
        raise DataError(
            f"{len(malformed)} of {len(texts)} teacher answers are malformed, the first is {malformed[0][0]}: "
            f"{malformed[0][1]}",
            "a policy learns what it is shown: drop these rows, or ask a teacher that keeps the form",
        )
