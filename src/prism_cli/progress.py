"""Progress bars of the terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import get_console
from rich.console import Console

from prism_cli.processes import is_main


def progress_callback(description: str, total: int) -> tuple[Any, Callable[[int], None]]:
    """A rich progress bar and the function that moves it to a count."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=get_console(), transient=True)
    task = bar.add_task(description, total=total)
    return bar, lambda done: bar.update(task, completed=done)


SILENT_SECONDS = 2.0


@contextmanager
def _progress(description: str) -> Iterator[Callable[[int, int | None], None]]:
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
