"""Warnings while a rollout stage trains: symptom, cause and cure, each once a run."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prism_cli.discriminator.health import HealthWarning, History, blind, collapsed_router, saturated
from prism_cli.discriminator.shortcuts import PROBES, shortcut
from prism_cli.runs.files import write_atomically
from prism_cli.trainers.rollout_health import (
    CLIPPED_RESPONSES,
    CLIPPED_TOKENS,
    clipped_ratios,
    cut_responses,
    entropy_collapse,
    far_from_start,
    format_collapse,
    format_milked,
    generator_gap,
    length_drift,
    nothing_to_learn,
    unscored,
)

WARNINGS_FILE = "warnings.jsonl"
Detector = Callable[[History], HealthWarning | None]


def rollout_detectors() -> list[Detector]:
    """Detectors for any stage with rollouts."""
    return [length_drift, format_collapse, cut_responses, entropy_collapse, far_from_start, generator_gap]


def align_detectors(parts: Sequence[str]) -> list[Detector]:
    """Detectors of adversarial training with a discriminator of these parts."""
    return [*rollout_detectors(), *discriminator_detectors(parts)]


def rl_detectors(by_sequence: bool) -> list[Detector]:
    """Detectors for rewards.

    Args:
        by_sequence: There is one ratio a response, not one a token.
    """
    clipped = partial(clipped_ratios, limit=CLIPPED_RESPONSES if by_sequence else CLIPPED_TOKENS)
    return [*rollout_detectors(), nothing_to_learn, format_milked, clipped, unscored]


def discriminator_detectors(parts: Sequence[str]) -> list[Detector]:
    """Detectors for a discriminator of these parts."""
    detectors: list[Detector] = []
    for part in parts:
        detectors += [partial(detector, part=part) for detector in (saturated, blind, collapsed_router)]
        detectors += [partial(shortcut, part=part, probe=probe) for probe in PROBES]
    return detectors


class HealthWatch(TrainerCallback):
    """Runs detectors over what is logged; a new warning goes to the console and to warnings.jsonl.

    Stand it after `MetricsLog`, whose file it reads when a run continues.

    Args:
        folder: The run's.
        detectors: Pure functions of the history.
        console: Where to warn.
    """

    def __init__(self, folder: Path, detectors: Sequence[Detector], console: Console):
        self.path, self.metrics = folder / WARNINGS_FILE, folder / "metrics.jsonl"
        self.detectors, self.console = detectors, console
        self.history: list[dict[str, float]] = []
        self.given: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reads the history up to the checkpoint."""
        if not state.is_world_process_zero:
            return
        self.history = [_measured(line) for line in complete_lines(self.metrics) if "loss" in line]
        earlier = [line for line in complete_lines(self.path) if line["step"] <= state.global_step]
        self.given = {line["kind"] for line in earlier}
        if earlier:
            write_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in earlier))
        else:
            self.path.unlink(missing_ok=True)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Runs the detectors over the history and this line."""
        # Held-out metrics and the closing summary are no part of the history.
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        self.history.append(_measured({"step": state.global_step, **(logs or {})}))
        for detector in self.detectors:
            warning = detector(self.history)
            if warning is not None and warning.kind not in self.given:
                self.given.add(warning.kind)
                self._warn(state.global_step, warning)

    def _warn(self, step: int, warning: HealthWarning) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **warning._asdict()}) + "\n")
        self.console.print(f"warning: step {step}: {warning.cause}", style="yellow", markup=False, highlight=False)
        self.console.print(f"         {warning.cure}", markup=False, highlight=False)


def _measured(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a logged line; what was measured on nothing, such as a reward that no response got, is NaN."""
    return {name: value for name, value in line.items() if isinstance(value, int | float) and math.isfinite(value)}


def complete_lines(path: Path) -> list[dict]:
    """The complete lines of a JSON-lines file; one that a kill cut short has no newline."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]
