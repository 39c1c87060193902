"""Warnings while a rollout stage trains: what looks wrong, why, and what to do, each once a run."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from transformers import TrainerCallback

from prism_cli.discriminator.health import HealthWarning, History, blind, collapsed_router, saturated
from prism_cli.discriminator.shortcuts import PROBES, shortcut
from prism_cli.runs import write_atomically

WARNINGS_FILE = "warnings.jsonl"
Detector = Callable[[History], HealthWarning | None]

LONGER, SHORTER = 1.5, 0.67
MALFORMED = 0.5
# Logged steps that are averaged, so that one odd batch is no alarm.
SMOOTHED = 5


def length_drift(history: History) -> HealthWarning | None:
    """Responses grew or shrank much since the start."""
    values = [line["completions/mean_length"] for line in history if "completions/mean_length" in line]
    if len(values) < 2 * SMOOTHED:
        return None
    before, now = sum(values[:SMOOTHED]) / SMOOTHED, sum(values[-SMOOTHED:]) / SMOOTHED
    if SHORTER * before <= now <= LONGER * before:
        return None
    more = now > before
    return HealthWarning(
        "length_drift",
        f"responses went from {before:.0f} to {now:.0f} tokens: being {'long' if more else 'short'} pays",
        "compare with the teacher's length (prism drift); lower optimizer.learning_rate, or start from a checkpoint "
        "before it happened (--from RUN@N)",
    )


def format_collapse(history: History) -> HealthWarning | None:
    """Most responses are malformed, so there is hardly anything to learn from."""
    values = [line["responses/malformed_fraction"] for line in history if "responses/malformed_fraction" in line]
    if len(values) < SMOOTHED or (mean := sum(values[-SMOOTHED:]) / SMOOTHED) <= MALFORMED:
        return None
    return HealthWarning(
        "format_collapse",
        f"{mean:.0%} of the responses are malformed: what is learned comes from the few others",
        "raise max_response_tokens if they are cut off, train SFT longer on the form, or lower optimizer.learning_rate",
    )


def rollout_detectors() -> list[Detector]:
    """What can go wrong wherever a policy rolls out."""
    return [length_drift, format_collapse]


def judge_detectors(parts: Sequence[str]) -> list[Detector]:
    """What can go wrong with a discriminator of these parts."""
    found: list[Detector] = []
    for part in parts:
        found += [partial(detector, part=part) for detector in (saturated, blind, collapsed_router)]
        found += [partial(shortcut, part=part, probe=probe) for probe in PROBES]
    return found


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

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.history = [line for line in _lines(self.metrics) if "loss" in line]
        kept = [line for line in _lines(self.path) if line["step"] <= state.global_step]
        self.given = {line["kind"] for line in kept}
        if kept:
            write_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in kept))
        else:
            self.path.unlink(missing_ok=True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        # Held-out metrics and the closing summary are no part of the history.
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        self.history.append({"step": state.global_step, **(logs or {})})
        for detector in self.detectors:
            warning = detector(self.history)
            if warning is not None and warning.kind not in self.given:
                self.given.add(warning.kind)
                self._tell(state.global_step, warning)

    def _tell(self, step: int, warning: HealthWarning) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **warning._asdict()}) + "\n")
        self.console.print(f"warning: step {step}: {warning.cause}", style="yellow", markup=False, highlight=False)
        self.console.print(f"         {warning.cure}", markup=False, highlight=False)


def _lines(path: Path) -> list[dict]:
    """The whole lines of a JSON-lines file; one that a kill cut short has no newline."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]
