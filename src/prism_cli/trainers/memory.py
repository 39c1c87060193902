"""How much memory training has taken at most, measured, beside what was planned."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback

GB = 10**9
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# AdamW's moments are made at the end of the first step, so only the second holds all that will be there.
SETTLED = 2


class MemoryWatch(TrainerCallback):
    """Measures the peak: on a GPU what tensors took, on a CPU the process's growth over what it was without models.

    Logs `memory/peak_gb`, and after two steps (or at the end) tells it beside the plan.

    Args:
        planned: Bytes, or None where no plan could be made.
        loaded: Bytes of the models that are loaded already.
        console: Where to tell it.
        record: Keeps values with the run.
    """

    def __init__(self, planned: float | None, loaded: float, console: Console, record: Callable[..., None]):
        self.planned, self.console, self.record = planned, console, record
        self.cuda = torch.cuda.is_available()
        self.loaded, self.before = loaded, 0.0
        self.told = False
        self.first = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.first = state.global_step
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            # By now all libraries are imported; what they take is none of the model's.
            self.before = _resident("VmRSS") - self.loaded
            _forget_peak()

    def on_step_end(self, args, state, control, **kwargs):
        if not self.told and state.global_step - self.first >= SETTLED:
            self._tell(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is not None and state.global_step > self.first:
            logs["memory/peak_gb"] = round(self.peak / GB, 3)

    def on_train_end(self, args, state, control, **kwargs):
        if not self.told and state.global_step > self.first:
            self._tell(state)
        self._keep(state)

    @property
    def peak(self) -> float:
        """Bytes at most so far."""
        return torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM") - self.before

    def _tell(self, state: Any) -> None:
        self.told = True
        if not state.is_world_process_zero:
            return
        planned = "" if self.planned is None else f", {self.planned / GB:.1f} planned for the longest rows"
        steps = state.global_step - self.first
        text = f"memory: {self.peak / GB:.1f} GB measured over the first {steps} steps{planned}"
        self.console.print(text, markup=False, highlight=False)
        self._keep(state)

    def _keep(self, state: Any) -> None:
        if state.is_world_process_zero:
            planned = None if self.planned is None else round(self.planned / GB, 3)
            self.record(memory={"peak_gb": round(self.peak / GB, 3), "planned_gb": planned})


def measurable() -> bool:
    """Whether there is a peak to be read here."""
    return torch.cuda.is_available() or STATUS.is_file()


def _resident(name: str) -> int:
    """Bytes of the process in main memory: now (VmRSS), or at most (VmHWM)."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    return int(found[1]) * 1024 if found else 0


def _forget_peak() -> None:
    """Begins the peak anew; where that is not allowed it stays the process's whole life's."""
    try:
        RESET.write_text("5")
    except OSError:
        return
