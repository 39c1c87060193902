"""Starts the processes of a stage that trains on several, watches over them, and tells how they ended."""

import json
import logging
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from prism_cli import processes
from prism_cli.errors import PrismError, RecipeError, Terminated
from prism_cli.launching import nodes, worker
from prism_cli.progress import say
from prism_cli.recipes.identity import run_folder, to_yaml
from prism_cli.recipes.launch import LaunchSection
from prism_cli.recipes.sources import command_of, file_name
from prism_cli.runs.folder import tell_killed

SOMEWHERE = ("$NODE_RANK", "$MASTER_ADDR", "$MASTER_PORT")
RESUME_HINT = "run the same command again to continue from the last checkpoint"
SOON = 10  # seconds within which deaths count as the first; torch kills what outlives the first by 30


class KilledError(PrismError):
    """A process was killed from outside."""


def needed(recipe: Any) -> bool:
    """Whether a recipe's stage trains in processes that are still to be started."""
    launch = getattr(recipe, "launch", None)
    return launch is not None and (launch.world_size > 1 or launch.zero is not None) and not processes.launched()


def check(recipe: Any) -> list[tuple[str, str]]:
    """The plan's line about a recipe's processes; finds what can't be started on this machine.

    Raises:
        RecipeError: more processes than GPUs, or no DeepSpeed.
    """
    launch: LaunchSection = recipe.launch
    if launch.zero is not None:
        processes.refuse_without_deepspeed()
    gpus = _gpus()
    if gpus and launch.processes > gpus:
        raise RecipeError(
            f"launch.processes is {launch.processes}, and this machine has {gpus} GPU{'s' if gpus > 1 else ''}",
            f"set launch.processes={gpus}; nodes are counted in launch.nodes",
        )
    return [("processes", describe(recipe) + (", a GPU each" if gpus else ", on the CPU"))]


def describe(recipe: Any) -> str:
    """On how many processes a recipe trains, and what is sharded over them, in words."""
    launch: LaunchSection = recipe.launch
    count = f"{launch.nodes} nodes × {launch.processes}" if launch.nodes > 1 else str(launch.processes)
    shards = f", DeepSpeed ZeRO-{launch.zero}" if launch.zero else ""
    return f"{count}{shards}{' with offload' if launch.offload else ''}"


def command(words: Sequence[str], launch: LaunchSection, place: tuple[Any, Any, Any] | None = None) -> list[str]:
    """The command that starts the processes of this node.

    Args:
        words: What each of them is to do: a command of prism, without `prism`.
        launch: How many.
        place: This node's number, the first one's address and port; None leaves them to shell variables.
    """
    node, address, port = place or (SOMEWHERE if launch.nodes > 1 else nodes.place(1, {}))
    several = [
        *("--num_machines", str(launch.nodes), "--machine_rank", str(node), "--same_network"),
        *("--main_process_ip", str(address)),
    ]
    return [
        *("accelerate", "launch"),
        *(["--multi_gpu"] if launch.world_size > 1 else []),
        *("--num_processes", str(launch.world_size)),
        *(several if launch.nodes > 1 else ("--num_machines", "1")),
        *("--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--module", "prism_cli", *words),
    ]


def shown(words: Sequence[str], launch: LaunchSection) -> str:
    """That command as a line for a shell."""
    line = shlex.join(command(words, launch))
    for name in SOMEWHERE:
        line = line.replace(f"'{name}'", name)
    return line


def run(stage: str, recipe: Any, fresh: bool, typed: Sequence[str]) -> bool:
    """Runs a stage in processes of its own, to their end; gives whether this is the first node.

    Args:
        stage: Its command.
        recipe: Its resolved recipe.
        fresh: Start over.
        typed: The command line, for the record.

    Raises:
        RecipeError: they can't be started here.
        PrismError: as the first process that failed told, with its exit code; or one was killed.
        KeyboardInterrupt: interrupted; Terminated: asked to end (SIGTERM).
    """
    check(recipe)
    place = nodes.place(recipe.launch.nodes)
    say(f"processes: {describe(recipe)}")
    with tempfile.TemporaryDirectory(prefix="prism-") as name:
        folder = Path(name)
        file = folder / file_name(stage)
        file.write_text(to_yaml(recipe), encoding="utf-8")
        (folder / "command.json").write_text(json.dumps(list(typed)), encoding="utf-8")
        (folder / "launcher.json").write_text(json.dumps(os.getpid()), encoding="utf-8")
        words = [*command_of(stage).split(), str(file), *(["--fresh"] if fresh else [])]
        try:
            _start(command(words, recipe.launch, place), recipe.launch, folder)
        except KilledError:
            tell_killed(run_folder(stage, recipe))
            raise
    return place.node == 0


def _start(words: list[str], launch: LaunchSection, folder: Path) -> None:
    """Runs `accelerate launch …` in this process, so that its processes end with it and their ends are known."""
    with _Watch() as watch:
        from accelerate.commands.launch import launch_command_parser, multi_gpu_launcher
        from accelerate.utils import patch_environment
        from torch.distributed import DistError
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        _quiet()
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // launch.processes))
        environment = {
            worker.FOLDER: str(folder),
            "OMP_NUM_THREADS": threads,
            # Else torch would end the processes on a signal itself, and leave them 30 seconds to save a checkpoint.
            "PET_SIGNALS_TO_HANDLE": "SIGQUIT",
        }
        with patch_environment(**environment):
            # What `accelerate launch` comes to with these words; itself it would read the user's defaults too.
            arguments = launch_command_parser().parse_args(words[2:])
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
    ends: dict[int, tuple[int, float]], told: list[worker.Failure], count: int, stopped: int | None
) -> NoReturn:
    """Raises what made the processes of this node fail.

    Args:
        ends: Process → exit code (negative for a signal) and second of its end, of those that failed.
        told: What they told, the earliest first.
        count: How many processes there are.
        stopped: The signal by which they were asked to end, or None.

    Raises:
        KilledError: the first process that was killed.
        PrismError: the first that failed.
        KeyboardInterrupt: they were asked to end.
    """
    if stopped is not None:
        raise KeyboardInterrupt if stopped == signal.SIGINT else Terminated
    first = min(at for _, at in ends.values())
    for rank, (code, at) in ends.items():
        if code < 0 and code != -signal.SIGTERM and at <= first + SOON:
            raise KilledError(
                f"process {rank} of {count} was killed (signal {-code}, {signal.Signals(-code).name})",
                f"signal 9 is mostly the memory running out: lower the batch or raise launch.zero; {RESUME_HINT}"
                if code == -signal.SIGKILL
                else RESUME_HINT,
            )
    if not told:
        rank, (code, _) = min(ends.items(), key=lambda end: end[1][1])
        raise PrismError(f"process {rank} of {count} ended with exit code {code}", RESUME_HINT)
    why = told[0]
    if why.exit_code in (worker.INTERRUPTED, Terminated.exit_code):
        raise KeyboardInterrupt if why.exit_code == worker.INTERRUPTED else Terminated
    if why.trace is not None:
        sys.stderr.write(why.trace)
        raise PrismError(f"process {why.rank} of {count} failed: {why.message}", "its traceback stands above")
    error = PrismError(why.message, why.hint)
    error.exit_code = why.exit_code
    raise error


class _Watch:
    """Hands signals on to the processes, which save a checkpoint and leave; a second Ctrl-C ends them at once.

    Torch starts each in a session of its own, so none gets the terminal's Ctrl-C.

    Attributes:
        stopped: The signal by which they were asked to end, or None.
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


def _quiet() -> None:
    """What torch's launcher logs about failures, prism says in fewer words."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
