"""Complete checkpoints: a marker once everything is written, older ones removed after that."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prism_cli import processes
from prism_cli.errors import CheckpointError
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import COMPLETE, checkpoint_step


class AlreadyTrainedError(Exception):
    """The checkpoint a run continues from is that of its last step."""


class Shards(NamedTuple):
    """Sharding of a checkpoint's states.

    Attributes:
        processes: Training processes that wrote it.
        zero: DeepSpeed's stage, None without.
    """

    processes: int
    zero: int | None


UNSHARDED = Shards(1, None)


def refuse_other_shards(checkpoint: Path, shards: Shards) -> None:
    """Refuses to continue from a checkpoint whose states are cut up in another way.

    Args:
        checkpoint: Its folder.
        shards: Of the training that is to continue.

    Raises:
        CheckpointError: naming the settings that continue it.
    """
    marker = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    saved = Shards(marker.get("processes", 1), marker.get("zero"))
    # Unsharded states fit any number of processes.
    if saved == shards or saved.zero is shards.zero is None:
        return
    raise CheckpointError(
        f"{checkpoint} was written by {_describe(saved)}, and this is {_describe(shards)}: the states of the "
        "optimiser are cut up for the former",
        f"continue with launch.processes × launch.nodes = {saved.processes} and launch.zero="
        f"{saved.zero or 'null'}, or start over with --fresh",
    )


def _describe(shards: Shards) -> str:
    count = f"{shards.processes} process{'es' if shards.processes > 1 else ''}"
    return f"{count} under ZeRO-{shards.zero}" if shards.zero else f"{count} without ZeRO"


def _nothing(folder: Path) -> None:
    """A checkpoint with what the trainer writes alone."""


class CompleteCheckpoints(TrainerCallback):
    """Completes each checkpoint with the policy's settings, marks it, then removes older ones.

    A checkpoint counts only once its marker stands, and an older one is removed only after that, so a kill at any
    moment leaves a checkpoint to continue from. By then the trainer has written its own files (`_save_checkpoint`).

    Args:
        keep: Newest checkpoints to keep, beside the best.
        shards: Written into the marker, see `Shards`.
        save_settings: Writes what a model folder needs beside the weights; called on the main process.

    Attributes:
        step_seconds: The longest step so far; it and the seconds of this save stand in the marker, for Slurm's script.
    """

    def __init__(self, keep: int, shards: Shards = UNSHARDED, save_settings: Callable[[Path], None] = _nothing):
        self.keep = keep
        self.shards = shards
        self.save_settings = save_settings
        self.step_seconds = 0.0
        self._since = time.monotonic()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """The beginning of what is measured."""
        self._since = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """The longest step."""
        self.step_seconds = max(self.step_seconds, time.monotonic() - self._since)
        self._since = time.monotonic()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """An evaluation is no part of the save that follows it."""
        self._since = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Completes the checkpoint of this step."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if processes.is_main():
            self.save_settings(folder)
        processes.barrier()
        if processes.is_main():
            self._complete(folder, state)
        processes.barrier()  # no process goes on, and perhaps fails, while the marker is not set

    def _complete(self, folder: Path, state: TrainerState) -> None:
        seconds = {"step_seconds": self.step_seconds, "save_seconds": time.monotonic() - self._since}
        marker = {"step": state.global_step, **self.shards._asdict(), **seconds}
        write_atomically(folder / COMPLETE, json.dumps(marker))
        complete = sorted((path.parent for path in folder.parent.glob(f"*/{COMPLETE}")), key=checkpoint_step)
        best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
        for old in complete[: -self.keep]:
            if old != best:
                # The marker first, so that a kill while deleting leaves no part of a checkpoint marked complete.
                (old / COMPLETE).unlink()
                shutil.rmtree(old)
