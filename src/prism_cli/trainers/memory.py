"""The memory callback: the measured peak of a training beside the planned one."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prism_cli.progress import say

GB = 10**9
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# AdamW's moments are made at the end of the first step, so only the second holds all that will be there.
SETTLED = 2


class MemoryWatch(TrainerCallback):
    """Measures the peak: on a GPU what tensors took, on a CPU the process's growth over what it was without models.

    Logs `memory/peak_gb`, and after two steps (or at the end) prints it beside the plan.

    Args:
        planned: Bytes, or None where no plan could be made.
        loaded: Bytes of the models that are loaded already.
        record: Keeps values with the run.
    """

    def __init__(self, planned: float | None, loaded: float, record: Callable[..., None]):
        self.planned, self.record = planned, record
        self.cuda = torch.cuda.is_available()
        self.loaded, self.before = loaded, 0.0
        self.printed = False
        self.first = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins the measurement."""
        self.first = state.global_step
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            # By now all libraries are imported; what they take is none of the model's.
            self.before = _resident("VmRSS") - self.loaded
            _forget_peak()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prints the peak once it has settled."""
        if not self.printed and state.global_step - self.first >= SETTLED:
            self._print(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds the peak to what is logged."""
        if logs is not None and state.global_step > self.first:
            logs["memory/peak_gb"] = round(self.peak / GB, 3)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Records the peak of the complete training."""
        if not self.printed and state.global_step > self.first:
            self._print(state)
        self._record(state)

    @property
    def peak(self) -> float:
        """Bytes at most so far."""
        return torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM") - self.before

    def _print(self, state: TrainerState) -> None:
        self.printed = True
        if not state.is_world_process_zero:
            return
        planned = "" if self.planned is None else f", {self.planned / GB:.1f} planned for the longest rows"
        steps = state.global_step - self.first
        text = f"memory: {self.peak / GB:.1f} GB measured over the first {steps} steps{planned}"
        say(text)
        self._record(state)

    def _record(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            planned = None if self.planned is None else round(self.planned / GB, 3)
            self.record(memory={"peak_gb": round(self.peak / GB, 3), "planned_gb": planned})


def measurable() -> bool:
    """Whether there is a peak to be read here."""
    return torch.cuda.is_available() or STATUS.is_file()


def _resident(name: str) -> int:
    """Bytes of the process in main memory: now (VmRSS), or at most (VmHWM)."""
    line = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    return int(line[1]) * 1024 if line else 0


def _forget_peak() -> None:
    """Begins the peak anew; where that is not allowed it stays that of the process's full life."""
    try:
        RESET.write_text("5")
    except OSError:
        return
