"""A process that prism's launcher started: it ends with its launcher, and reports to it how it failed.

Launcher and processes share a folder, named in PRISM_LAUNCHED: `command.json` holds what the user typed, and a process
that fails leaves `failed-<rank>.json`. Processes that somebody else's launcher started (torchrun) have no such folder.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from prism_cli import processes
from prism_cli.errors import PrismError

FOLDER = "PRISM_LAUNCHED"
INTERRUPTED = 130
NOTICE_SECONDS = 10.0  # the first process may take so long to notice a failure
SAVING_SECONDS = 600.0  # and so long to finish a step and write what is left of a checkpoint
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class Failure(NamedTuple):
    """The failure of a process, as it reported it.

    Attributes:
        rank: Which process.
        at: When, in seconds since 1970.
        exit_code: What it left with.
        message: Its error.
        cure: Its hint, or None, and the settings in it, as in `PrismError.cure`.
        section: The section of the recipe that it is about, or None.
        trace: The traceback of a bug, or None.
    """

    rank: int
    at: float
    exit_code: int
    message: str
    cure: tuple[str | None, Sequence[str]] = (None, ())
    section: str | None = None
    trace: str | None = None


def by_prism() -> bool:
    """Whether prism's own launcher started this process; it then does what concerns all of them."""
    return FOLDER in os.environ


def command() -> list[str]:
    """The command line as the user typed it."""
    if not by_prism():
        return ["prism", *sys.argv[1:]]
    return json.loads((Path(os.environ[FOLDER]) / "command.json").read_text(encoding="utf-8"))


def should_print(error: PrismError | KeyboardInterrupt) -> bool:
    """Whether this process is the one that prints how it ended; to a launcher of prism's own it reports instead."""
    if not by_prism():
        return processes.world_size() == 1 or processes.tells_of_failure()
    if isinstance(error, PrismError):
        _report(Failure(processes.rank(), time.time(), error.exit_code, str(error), error.cure, error.section))
        _leave_after_first(NOTICE_SECONDS)
    else:
        _report(Failure(processes.rank(), time.time(), exit_code(error), "interrupted"))
        _leave_after_first(SAVING_SECONDS)
    return False


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Exit code of an interrupted process: 130, after SIGTERM 143."""
    return getattr(interrupt, "exit_code", INTERRUPTED)


def _leave_after_first(seconds: float) -> None:
    """Waits until the node's first process has reported too: with the first that leaves, torch ends the others."""
    first = Path(os.environ[FOLDER]) / f"failed-{processes.rank() - processes.local_rank()}.json"
    end = time.monotonic() + seconds
    while not first.exists() and first.parent.is_dir() and time.monotonic() < end:
        time.sleep(0.1)


class Working:
    """Around all that a started process does: it is killed with its launcher, and a bug's traceback goes there."""

    def __enter__(self) -> None:
        _die_with_launcher()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Exception):
            trace = "".join(traceback.format_exception(error))
            message = f"{type(error).__name__}: {error}"
            _report(Failure(processes.rank(), time.time(), 1, message, trace=trace))
            raise SystemExit(1)


def failures(folder: Path) -> list[Failure]:
    """The failures that processes reported, the earliest first."""
    reports = [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("failed-*.json")]
    return sorted(reports, key=lambda failure: (failure.at, failure.rank))


def _report(failure: Failure) -> None:
    folder = Path(os.environ[FOLDER])
    path = folder / f"failed-{failure.rank}.json"
    if not folder.is_dir() or path.exists():
        return  # the launcher has left, or this is what the first failure led to
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(failure._asdict()), encoding="utf-8")
    partial.rename(path)


def _die_with_launcher() -> None:
    """Has the kernel end this process when its launcher is gone, however it went."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(json.loads((Path(os.environ[FOLDER]) / "launcher.json").read_text(encoding="utf-8"))):
        raise SystemExit(1)  # it went before the kernel knew
