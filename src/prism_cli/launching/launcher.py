"""The launcher: the processes of a stage that trains on several, started, watched, and how they ended."""

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from prism_cli.errors import PrismError, Terminated
from prism_cli.launching import worker
from prism_cli.launching.command import Launch, command
from prism_cli.launching.nodes import Place

RESUME_HINT = "run the same command again to continue from the last checkpoint"
# A process killed later than this after the first end was killed by torch, which does so 30 seconds after it.
SECONDS_AFTER_FIRST_END = 10


class KilledError(PrismError):
    """A process was killed from outside."""


def run(words: Sequence[str], launch: Launch, place: Place, folder: Path, typed: Sequence[str]) -> None:
    """Runs a command of prism in processes of its own, to their end.

    `accelerate launch …` runs in this process, so that its processes end with it and their ends are known.

    Args:
        words: The command, without `prism`.
        launch: How many processes.
        place: This node.
        folder: Empty but for the command's own files; what launcher and processes say to each other goes there.
        typed: The command line, for the record.

    Raises:
        PrismError: as the first process that failed says, with its exit code; or the nodes did not meet.
        KilledError: a process was killed.
        KeyboardInterrupt: interrupted; Terminated: on SIGTERM.
    """
    (folder / "command.json").write_text(json.dumps(list(typed)), encoding="utf-8")
    (folder / "launcher.json").write_text(json.dumps(os.getpid()), encoding="utf-8")
    with _Watch() as watch:
        from accelerate.commands.launch import launch_command_parser, multi_gpu_launcher
        from accelerate.utils import patch_environment
        from torch.distributed import DistError
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        _silence_torch()
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // launch.processes))
        environment = {
            worker.FOLDER: str(folder),
            "OMP_NUM_THREADS": threads,
            # Else torch would end the processes on a signal itself, and leave them 30 seconds to save a checkpoint.
            "PET_SIGNALS_TO_HANDLE": "SIGQUIT",
        }
        with patch_environment(**environment):
            # What `accelerate launch` comes to with these words; itself it would read the user's defaults too.
            arguments = launch_command_parser().parse_args(command(words, launch, place)[2:])
            arguments.num_cpu_threads_per_process = int(threads)
            try:
                multi_gpu_launcher(arguments)
            except (ConnectionError, DistError) as error:
                where = f"{arguments.main_process_ip or 'this node'}:{arguments.main_process_port}"
                raise PrismError(
                    f"the {launch.nodes} nodes did not find each other at {where}: {error}",
                    "start the same command on every node; another MASTER_PORT where this one is taken",
                ) from None
            except ChildFailedError as error:
                ends = {rank: (one.exitcode, float(one.timestamp)) for rank, one in error.failures.items()}
                raise_why(ends, worker.failures(folder), launch.world_size, watch.stopped)


def raise_why(
    ends: dict[int, tuple[int, float]], failures: list[worker.Failure], count: int, stopped: int | None
) -> NoReturn:
    """Raises what made the processes of this node fail.

    Args:
        ends: Process → exit code (negative for a signal) and second of its end, of those that failed.
        failures: Their reports, the earliest first.
        count: How many processes there are.
        stopped: The signal that was handed on to them, or None.

    Raises:
        KilledError: the first process that was killed.
        PrismError: the first that failed.
        KeyboardInterrupt: they ended on a signal.
    """
    if stopped is not None:
        raise KeyboardInterrupt if stopped == signal.SIGINT else Terminated
    first = min(at for _, at in ends.values())
    for rank, (code, at) in ends.items():
        if code < 0 and code != -signal.SIGTERM and at <= first + SECONDS_AFTER_FIRST_END:
            raise KilledError(
                f"process {rank} of {count} was killed (signal {-code}, {signal.Signals(-code).name})",
                f"signal 9 is mostly the memory running out: lower the batch or raise launch.zero; {RESUME_HINT}"
                if code == -signal.SIGKILL
                else RESUME_HINT,
            )
    if not failures:
        rank, (code, _) = min(ends.items(), key=lambda end: end[1][1])
        raise PrismError(f"process {rank} of {count} ended with exit code {code}", RESUME_HINT)
    why = failures[0]
    if why.exit_code in (worker.INTERRUPTED, Terminated.exit_code):
        raise KeyboardInterrupt if why.exit_code == worker.INTERRUPTED else Terminated
    if why.trace is not None:
        sys.stderr.write(why.trace)
        raise PrismError(f"process {why.rank} of {count} failed: {why.message}", "its traceback stands above")
    error = PrismError(why.message, *why.cure)
    error.section, error.exit_code = why.section, why.exit_code
    raise error


class _Watch:
    """Hands signals on to the processes, which save a checkpoint and leave; a second Ctrl-C ends them at once.

    Torch starts each in a session of its own, so none gets the terminal's Ctrl-C.

    Attributes:
        stopped: The signal that was handed on to them, or None.
    """

    def __init__(self) -> None:
        import psutil

        self.stopped: int | None = None
        self._me = psutil.Process()
        self._others = {child.pid for child in self._me.children()}

    def __enter__(self) -> "_Watch":
        self._undo = ExitStack()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._undo.callback(signal.signal, number, signal.signal(number, self._hand_on))
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def _hand_on(self, number: int, frame: object) -> None:
        again, self.stopped = self.stopped is not None, number
        mine = [child for child in self._me.children() if child.pid not in self._others]
        if again and number == signal.SIGINT:
            _send(mine, signal.SIGKILL)
        elif not mine:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated  # there is nothing to save yet
        elif not again:
            _send(mine, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def _send(children: list[Any], number: int) -> None:
    for child in children:
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            continue  # it has ended by itself


def _silence_torch() -> None:
    """Silences what torch's launcher logs about failures: `raise_why` says it."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
