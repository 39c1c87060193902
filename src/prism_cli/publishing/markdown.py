"""Markdown of cards: tables and YAML blocks."""

from collections.abc import Iterable, Sequence
from typing import Any

from huggingface_hub.utils import yaml_dump


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table.

    Args:
        head: Names of the columns; may be empty texts.
        rows: Cells, as many a row as there are columns.
    """
    return [_row(head), f"|{'---|' * len(head)}", *map(_row, rows)]


def yaml_block(values: Any) -> list[str]:
    """The lines of a fenced block with plain values as YAML."""
    return ["```yaml", yaml_dump(values, sort_keys=False).rstrip(), "```"]


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"
