"""Rows of a file, a folder or the hub for a stage, read and checked before anything is trained."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from prism_cli.processes import is_main
from prism_cli.recipes.sections import FileData

if TYPE_CHECKING:  # datasets costs seconds to import
    from datasets import Dataset, IterableDataset

    from prism_cli.data.preflight import Problem
    from prism_cli.data.prepared import Progress
    from prism_cli.responses import Grammar

Needs = Literal["sft", "align", "rl", "eval"]

PREPARED = Path("runs/prepared")
SILENT_SECONDS = 2.0
NAMED = 20


def file_rows(
    section: FileData, instruction: str | None, needs: Needs | None = None, teachers: "Grammar | None" = None
) -> "Dataset":
    """All rows of a section that can be used, prepared once for all runs of this folder.

    Args:
        section: Which rows.
        instruction: System message for rows without one.
        needs: The stage they must serve.
        teachers: The form their teacher responses must have, when those will be used.

    Raises:
        DataError: nothing there, or rows that can't be used.
    """
    from prism_cli.data.load import load_rows
    from prism_cli.data.pool import cores

    with _progress(f"preparing {section.path}") as progress:
        options = _options(section, instruction, needs, teachers)
        loaded = load_rows(**options, cache=PREPARED, processes=cores(), progress=progress)
    _say(f"{section.path}: {len(loaded.rows)} rows, {loaded.format}")
    _say_problems(section.path, loaded.problems, loaded.skipped)
    return loaded.rows


def streamed_rows(
    section: FileData,
    instruction: str | None,
    needs: Needs,
    seed: int,
    refuse: Callable[[dict[str, Any]], str | None],
) -> "IterableDataset":
    """Rows of a section, checked as they flow, again and again.

    Args:
        section: Which rows.
        instruction: System message for rows without one.
        needs: The stage they must serve.
        seed: Of their order.
        refuse: Why a row that passed the checks can't be used, or None.

    Raises:
        DataError: nothing there; later, a row that can't be used.
    """
    from prism_cli.data.load import stream_rows

    named = 0

    def skipped(problems: Sequence["Problem"]) -> None:
        nonlocal named
        named += 1
        if named <= NAMED:
            _say_problems(section.path, problems, 1)
        elif named == NAMED + 1:
            _say(f"{section.path}: more rows are left out; they are counted when all were read once")

    def read_once(skipped: int) -> None:
        if skipped > NAMED:
            _say(f"{section.path}: {skipped} rows left out in all")

    options = _options(section, instruction, needs, None)
    return stream_rows(**options, seed=seed, refuse=refuse, on_skipped=skipped, on_pass=read_once)


def _options(
    section: FileData, instruction: str | None, needs: Needs | None, teachers: "Grammar | None"
) -> dict[str, Any]:
    from prism_cli.data.reading import Checks

    verify = None
    if needs in ("rl", "eval"):
        from prism_cli.rewards.accuracy import is_correct as verify

    return {
        "path": section.path,
        "format": section.format,
        "limit": section.limit,
        "allow_urls": section.allow_urls,
        "on_bad_row": section.on_bad_row,
        "checks": Checks(needs, teachers, verify),
        "instruction": instruction,
    }


def _say(line: str) -> None:
    # A notice, so beside what the command gives: that may be read by a program.
    Console(stderr=True, quiet=not is_main()).print(line, markup=False, highlight=False, soft_wrap=True)


def _say_problems(path: str, problems: Sequence["Problem"], skipped: int) -> None:
    errors = [problem for problem in problems if problem.severity == "error"]
    if skipped:
        more = [f"… and {len(errors) - NAMED} more"] if len(errors) > NAMED else []
        _say("\n  ".join([f"{path}: {skipped} rows left out", *map(str, errors[:NAMED]), *more]))
    if warnings := len(problems) - len(errors):
        _say(f"{path}: {warnings} warnings; `prism data check {path}` shows them")


@contextmanager
def _progress(description: str) -> "Iterator[Progress]":
    """A function that moves a progress bar, which shows itself when the work lasts."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_main())
    task = bar.add_task(description, total=None)
    begins = time.monotonic() + SILENT_SECONDS
    started = False

    def moved(done: int, total: int | None) -> None:
        nonlocal started
        if not started and time.monotonic() > begins:
            started = True
            bar.start()
        if started:
            bar.update(task, completed=done, total=total)

    try:
        yield moved
    finally:
        if started:
            bar.stop()
