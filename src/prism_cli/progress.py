"""Lines and progress bars on the terminal, from the main process alone."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich import get_console
from rich.console import Console

from prism_cli.processes import is_main

# A bar shows itself once the work has lasted so long; without a terminal a plain line is due every so many seconds.
SILENT_SECONDS, LINE_SECONDS = 2.0, 30.0


def say(line: str) -> None:
    """Prints a line as it is, on stdout."""
    if is_main():
        get_console().print(line, markup=False, highlight=False, soft_wrap=True)


def notice(line: str) -> None:
    """Prints a line on stderr, beside what the command gives: a program may read that."""
    Console(stderr=True, quiet=not is_main()).print(line, markup=False, highlight=False, soft_wrap=True)


class OnProgress(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int | None = None, detail: str | None = None) -> None:
        """Moves it.

        Args:
            done: Units of work that are done.
            total: Of how many; None leaves it as it was.
            detail: Text behind the bar; None leaves it as it was.
        """
        ...


@contextmanager
def progress(label: str, total: int | None = None, lasting: bool = False) -> Iterator[OnProgress]:
    """A progress bar on stderr with the time left; without a terminal, a line every half minute.

    Args:
        label: Text in front of it.
        total: Units of work, where they are known.
        lasting: Shown from the start, and left standing at the end; else only long work shows a bar, until it is done.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        *(TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn()),
        *(TimeRemainingColumn(elapsed_when_finished=True), TextColumn("{task.fields[detail]}", markup=False)),
    )
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=not lasting, redirect_stdout=sys.stdout.isatty())
    task = bar.add_task(label, total=total, detail="")
    silent = 0.0 if lasting else SILENT_SECONDS
    due = time.monotonic() + (silent if console.is_terminal else LINE_SECONDS)

    def on_progress(done: int, total: int | None = None, detail: str | None = None) -> None:
        nonlocal due
        changes: dict[str, Any] = {"completed": done} if detail is None else {"completed": done, "detail": detail}
        bar.update(task, total=total, **changes)
        if not is_main() or time.monotonic() < due:
            return
        if console.is_terminal:
            bar.start()
            return
        due = time.monotonic() + LINE_SECONDS
        notice(_line(bar.tasks[task]))

    try:
        yield on_progress
    finally:
        if lasting and not console.is_terminal:
            notice(_line(bar.tasks[task]))
        elif bar.live.is_started:
            bar.stop()


def _line(task: Any) -> str:
    """`12:30:05 warm-up: 40 of 100, 0:01:30 left`."""
    total = "" if task.total is None else f" of {task.total:,.0f}"
    left = "" if task.time_remaining is None else f", {_clock(task.time_remaining)} left"
    time_ = f", took {_clock(task.elapsed or 0)}" if task.finished else left
    text = (
        f"{time.strftime('%H:%M:%S')} {task.description}: {task.completed:,.0f}{total}{time_} {task.fields['detail']}"
    )
    return text.rstrip()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
