"""Files written complete or not at all, JSON lines, and the lock of a folder."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prism_cli.errors import CheckpointError
from prism_cli.runs import locks

LOCK = ".lock"


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Writes JSON lines as `write_atomically` does."""
    write_atomically(path, "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values))


def read_lines(path: Path) -> list[Any]:
    """The values of JSON lines; [] where there is no file. What a kill left of a last line is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run's folder against other processes.

    Raises:
        CheckpointError: another process holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.held(folder / LOCK))
        except BlockingIOError:
            raise CheckpointError(
                f"{folder} is in use by another process", "wait for it, or give this run another --output"
            ) from None
        yield


def is_held(folder: Path) -> bool:
    """Whether a process works in a run's folder now."""
    return locks.is_held(folder / LOCK)
