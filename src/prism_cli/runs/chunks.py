"""Results kept on disk chunk by chunk: a kill costs the chunk under way, and what follows is as if there was no kill.

A chunk is what is made in one go, with one seed. Only complete chunks are kept: what a kill left of another is cut off
and made again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def chunks(total: int, size: int) -> list[range]:
    """The numbers of the results of each chunk, the last one shorter.

    Args:
        total: Results wanted.
        size: Results a chunk.
    """
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def kept_results(path: Path, spans: Sequence[range]) -> list[Any]:
    """The results of the complete chunks on disk; the file is cut after them.

    Args:
        path: JSON lines, one a result; need not exist.
        spans: The numbers of the results of each chunk, one chunk after the other.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # behind the last line end stands nothing, or a piece of a line
    count = max((span.stop for span in spans if span.stop <= len(lines)), default=0)
    with open(path, "ab") as file:
        file.truncate(sum(len(line) + 1 for line in lines[:count]))
    return [json.loads(line) for line in lines[:count]]


def in_chunks(
    path: Path,
    spans: Sequence[range],
    make: Callable[[range], Sequence[Any]],
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Any]:
    """All results: those of complete chunks from disk, the others made chunk by chunk and kept.

    Args:
        path: JSON lines, one a result.
        spans: The numbers of the results of each chunk, one chunk after the other.
        make: Gives the results of a chunk, JSON values; by their numbers alone, so that they are the same after a kill.
        on_progress: Called with the number of results there are.
    """
    results = kept_results(path, spans)
    on_progress(len(results))
    with open(path, "a", encoding="utf-8") as file:
        for span in spans:
            if span.start < len(results):
                continue
            made = make(span)
            file.write("".join(f"{json.dumps(result, ensure_ascii=False)}\n" for result in made))
            file.flush()
            results += made
            on_progress(len(results))
    return results
