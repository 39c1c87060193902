"""What watches a training run: metrics on disk, progress on screen, complete checkpoints, a stop on non-finite loss."""

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState

from prism_cli import processes
from prism_cli.errors import CheckpointError, PrismError, Terminated
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import COMPLETE, checkpoint_step


class Shards(NamedTuple):
    """How a checkpoint's states are cut up.

    Attributes:
        processes: Training processes that wrote it.
        zero: DeepSpeed's stage, None without.
    """

    processes: int
    zero: int | None


WHOLE = Shards(1, None)


def refuse_other_shards(checkpoint: Path, shards: Shards) -> None:
    """Refuses to continue from a checkpoint whose states are cut up in another way.

    Raises:
        CheckpointError: naming the settings that continue it.
    """
    marker = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    saved = Shards(marker.get("processes", 1), marker.get("zero"))
    # Whole copies fit any number of processes.
    if saved == shards or saved.zero is shards.zero is None:
        return
    raise CheckpointError(
        f"{checkpoint} was written by {_in_words(saved)}, and this is {_in_words(shards)}: the states of the "
        "optimiser are cut up for the former",
        f"continue with launch.processes × launch.nodes = {saved.processes} and launch.zero="
        f"{saved.zero or 'null'}, or start over with --fresh",
    )


def _in_words(shards: Shards) -> str:
    count = f"{shards.processes} process{'es' if shards.processes > 1 else ''}"
    return f"{count} under ZeRO-{shards.zero}" if shards.zero else f"{count} without ZeRO"


class CompleteCheckpoints(TrainerCallback):
    """Completes each checkpoint with what the trainer doesn't save, marks it, then removes older ones.

    A checkpoint counts only once its marker stands, and an older one is removed only after that, so a kill at any
    moment leaves a checkpoint to continue from.

    Args:
        savers: Each writes something of its own into the checkpoint folder. They are called on every process, and only
            the main one may write what is not its own.
        keep: Newest checkpoints to keep, beside the best.
        shards: What the marker says of how the states are cut up, see `Shards`.
    """

    def __init__(self, savers: Sequence[Callable[[Path], None]], keep: int, shards: Shards = WHOLE):
        self.savers = savers
        self.keep = keep
        self.shards = shards

    def on_save(self, args, state, control, **kwargs):
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        for save in self.savers:
            save(folder)
        processes.barrier()
        if processes.is_main():
            self._complete(folder, state)
        processes.barrier()  # no one goes on, and perhaps fails, while the mark is not set

    def _complete(self, folder: Path, state: TrainerState) -> None:
        write_atomically(folder / COMPLETE, json.dumps({"step": state.global_step, **self.shards._asdict()}))
        complete = sorted((p.parent for p in folder.parent.glob(f"*/{COMPLETE}")), key=checkpoint_step)
        best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
        for old in complete[: -self.keep]:
            if old != best:
                (old / COMPLETE).unlink()  # first, so that a kill while deleting leaves no half checkpoint marked whole
                shutil.rmtree(old)


class MetricsLog(TrainerCallback):
    """Appends what the trainer logs to metrics.jsonl; on resume, lines past the checkpoint are dropped first."""

    def __init__(self, path: Path):
        self.path = path
        self.started = time.monotonic()
        self.before = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or not self.path.exists():
            return
        # A line that a kill cut short has no newline at its end, and belongs to a step that is done again.
        whole = [line for line in self.path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= state.global_step]
        self.before = json.loads(kept[-1])["seconds"] if kept else 0.0
        write_atomically(self.path, "".join(kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            line = {"step": state.global_step, "seconds": round(self.before + time.monotonic() - self.started, 2)}
            line |= {_metric_name(name): value for name, value in logs.items() if isinstance(value, int | float)}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _metric_name(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else name


class AlreadyTrainedError(Exception):
    """The checkpoint a run continues from is that of its last step."""


class NoExtraStep(TrainerCallback):
    """Keeps a run that was killed after its last checkpoint from taking one step more.

    The trainer compares the step with the last one only after a step. By now weights and state are loaded.

    Raises:
        AlreadyTrainedError: from `train()`, before its first step.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise AlreadyTrainedError


class GracefulShutdown(TrainerCallback):
    """Ctrl-C and SIGTERM while training: the step is ended, its checkpoint written on all processes, and then training.

    Asked a second time, the process ends where it is.

    Args:
        console: Where to say so.
        every: Training ends only at multiples of so many steps, as a checkpoint between them can't be continued.

    Attributes:
        asked: What ended training, to be raised after it; None where nothing did.
    """

    def __init__(self, console: Console, every: int = 1):
        self.console, self.every = console, every
        self.asked: KeyboardInterrupt | None = None
        self._caught: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._catch)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every:
            return
        caught = [number for number in processes.gather(self._caught) if number is not None]
        if caught:
            self.asked = Terminated() if signal.SIGTERM in caught else KeyboardInterrupt()
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.let_go()

    def let_go(self) -> None:
        """Gives the signals back; call it when training failed too."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _catch(self, number: int, frame: Any) -> None:
        if self._caught is not None:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self._caught = number
        self.console.print("ending with this step, and keeping it; once more to end at once", markup=False)


class StopOnNonFinite(TrainerCallback):
    """Ends the run when loss or gradient is no longer a number, and before such weights are saved."""

    def on_step_end(self, args, state, control, **kwargs):
        # What is not logged is not seen: steps between two logs must not reach a checkpoint or the final model unseen.
        if control.should_save or control.should_training_stop:
            control.should_log = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                raise PrismError(
                    f"step {state.global_step}: {name} is {value}",
                    "lower optimizer.learning_rate and start over: --fresh, or --from RUN@N --output NEW",
                )


class RichProgress(TrainerCallback):
    """One live line: stage, step, time left, and the few metrics that matter.

    Args:
        stage: Shown in front.
        shown: Metric name → short label, in order; those not logged are left out.
        console: Where to draw.
    """

    def __init__(self, stage: str, shown: dict[str, str], console: Console):
        self.shown = shown
        self.progress = Progress(
            TextColumn(f"[bold]{stage:<6}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[metrics]}"),
            console=console,
        )

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.task = self.progress.add_task("", total=state.max_steps, completed=state.global_step, metrics="")
            self.progress.start()

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            values = [f"{label} {logs[name]:.3g}" for name, label in self.shown.items() if logs.get(name) is not None]
            if values:
                self.progress.update(self.task, metrics="  ".join(values))

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.stop()
