"""Callbacks of every training: metrics on disk, progress on screen, a clean end, a stop on a non-finite loss."""

import json
import math
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prism_cli import phases, processes
from prism_cli.errors import PrismError, Terminated
from prism_cli.progress import OnProgress, progress, say
from prism_cli.runs.files import write_atomically
from prism_cli.trainers.checkpoints import AlreadyTrainedError, CompleteCheckpoints
from prism_cli.trainers.drift_stop import StopWhenFlat
from prism_cli.trainers.last_step import LastStep

if TYPE_CHECKING:  # it imports what only tracked runs need
    from prism_cli.trainers.trackers import Tracker


class MetricsLog(TrainerCallback):
    """Appends what the trainer logs to metrics.jsonl; on resume, lines past the checkpoint are dropped first.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.started = time.monotonic()
        self.before = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drops lines past the checkpoint."""
        if not state.is_world_process_zero or not self.path.exists():
            return
        # A line that a kill cut short has no newline at its end, and belongs to a step that is done again.
        complete = [line for line in self.path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
        earlier = [line for line in complete if json.loads(line)["step"] <= state.global_step]
        self.before = json.loads(earlier[-1])["seconds"] if earlier else 0.0
        write_atomically(self.path, "".join(earlier))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Appends a line."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            line = {"step": state.global_step, "seconds": round(self.before + time.monotonic() - self.started, 2)}
            line |= {_metric_name(name): value for name, value in logs.items() if isinstance(value, int | float)}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _metric_name(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else name


class StepStart(TrainerCallback):
    """Marks the step under way for errors, and keeps a run that was killed after its last step from taking one more.

    The trainer compares the step with the last one only after a step. When training begins, weights and state are
    loaded.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compares the checkpoint's step with the last one.

        Raises:
            AlreadyTrainedError: nothing is left to train.
        """
        if state.global_step >= state.max_steps:
            raise AlreadyTrainedError

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Marks the step."""
        phases.enter(phases.UPDATE, state.global_step + 1)


class GracefulShutdown(TrainerCallback):
    """Ctrl-C and SIGTERM while training: the step is ended, its checkpoint written on all processes, and then training.

    At a second signal the process ends at once.

    Args:
        every: Training ends only at multiples of so many steps, as a checkpoint between them can't be continued.

    Attributes:
        interrupt: The exception to raise after training; None where no signal came.
    """

    def __init__(self, every: int = 1):
        self.every = every
        self.interrupt: KeyboardInterrupt | None = None
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes over both signals."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._catch)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends training where any process was signalled."""
        if state.global_step % self.every:
            return
        signals = [number for number in processes.gather(self._signal) if number is not None]
        if signals:
            self.interrupt = Terminated() if signal.SIGTERM in signals else KeyboardInterrupt()
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restores the signals' handlers."""
        self.restore()

    def restore(self) -> None:
        """Restores the signals' handlers; to be called when training failed too."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _catch(self, number: int, frame: Any) -> None:
        if self._signal is not None:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self._signal = number
        say("ending with this step, and keeping it; once more to end at once")


class StopOnNonFinite(TrainerCallback):
    """Ends the run when loss or gradient is no longer a number, and before such weights are saved."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Has a step logged that will be saved.

        What is not logged is not seen: steps between two logs must not reach a checkpoint or the final model unseen.
        """
        if control.should_save or control.should_training_stop:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Looks at loss and gradient.

        Raises:
            PrismError: one of them is not finite.
        """
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                raise PrismError(
                    f"step {state.global_step}: {name} is {value}",
                    "lower optimizer.learning_rate and start over: --fresh, or --from RUN@N --output NEW",
                )


class ProgressBar(TrainerCallback):
    """One bar for the training: stage, steps, time left, and the few metrics that matter.

    Args:
        stage: Shown in front.
        shown: Metric name → short label, in order; those not logged are left out.
    """

    def __init__(self, stage: str, shown: dict[str, str]):
        self.stage, self.shown = stage, shown
        self._open = ExitStack()
        self._on_progress: OnProgress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar."""
        self._on_progress = self._open.enter_context(progress(self.stage, state.max_steps, lasting=True))
        self._on_progress(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the bar."""
        if self._on_progress is not None:
            self._on_progress(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the metrics behind the bar."""
        numbers = {label: (logs or {}).get(name) for name, label in self.shown.items()}
        values = [f"{label} {value:.3g}" for label, value in numbers.items() if value is not None]
        if values and self._on_progress is not None:
            self._on_progress(state.global_step, detail="  ".join(values))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Closes the bar, so that no error is printed into it; to be called when training failed too."""
        self._open.close()


class Callbacks(NamedTuple):
    """The callbacks of one training, by name; `all` has them in the order in which they are called.

    Attributes:
        shutdown: Ends training on a signal.
        checkpoints: Completes checkpoints.
        progress: The bar.
        last_step: Keeps the last complete step of a training that fails.
        logs: Writes metrics.jsonl.
        memory: Measures memory and logs it, or None.
        early_stop: Ends alignment once drift is flat, or None.
        trackers: Send metrics, and what the rollout log keeps, elsewhere.
        watchers: The stage's own, which only look on.
    """

    shutdown: GracefulShutdown
    checkpoints: CompleteCheckpoints
    progress: ProgressBar
    last_step: LastStep
    logs: MetricsLog
    memory: TrainerCallback | None = None
    early_stop: StopWhenFlat | None = None
    trackers: "tuple[Tracker, ...]" = ()
    watchers: tuple[TrainerCallback, ...] = ()

    def all(self) -> list[TrainerCallback]:
        """All of them as a trainer takes them: what decides or adds to a log comes before what reads it."""
        ordered = (
            *(StepStart(), self.shutdown, StopOnNonFinite(), self.memory, self.logs, self.progress),
            *(self.checkpoints, self.last_step, self.early_stop, *self.trackers, *self.watchers),
        )
        return [callback for callback in ordered if callback is not None]
