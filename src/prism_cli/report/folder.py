"""Reads a run folder as it is: any file may be missing or cut off, and what can't be read is noted, never fatal."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prism_cli.errors import CheckpointError

FILES = ("run.json", "metrics.jsonl", "summary.json", "drift.json", "showcase.jsonl", "teacher.json", "recipe.yaml")
MEASURING = ("eval", "drift")
PIPELINE = "run"  # the stage whose folder holds folders of steps
_IMAGE = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/=]+")


@dataclass
class Step:
    """One step's folder, read.

    Attributes:
        id: The folder's name.
        place: Where it lies.
        manifest: run.json, or {}.
        recipe: recipe.yaml's text, or "".
        metrics: metrics.jsonl's lines in order.
        summary: summary.json (of an evaluation) or drift.json, or {}.
        study: study.json, or {}.
        showcase: showcase.jsonl's lines.
        rollouts: rollouts.jsonl's lines.
        warnings: warnings.jsonl's lines.
        teacher: teacher.json, or {}.
        samples: Run → the lines of samples-<run>.jsonl.
        causes: Run → the lines of attribution-<run>.jsonl.
        questions: questions.jsonl's lines: an evaluation's questions.
        notes: What could not be read, in words.
    """

    id: str
    place: Path = Path()
    manifest: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    showcase: list[dict[str, Any]] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    teacher: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    causes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    questions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_steps(folder: Path) -> list[Step]:
    """The steps in a pipeline's folder, oldest first, or the one step whose folder it is.

    Raises:
        CheckpointError: the folder holds no run.
    """
    folders = [path for path in sorted(folder.glob("*/")) if any((path / name).is_file() for name in FILES)]
    if read_object(folder / "run.json", []).get("stage", PIPELINE) != PIPELINE:
        folders = [folder]  # what lies inside is the step's own, such as the warm-up of its discriminator
    if not folders and any((folder / name).is_file() for name in FILES):
        folders = [folder]
    if not folders:
        raise CheckpointError(f"{folder} holds no run (no {', '.join(FILES[:3])} …)", "give a folder under runs/")
    steps = [_read_step(path) for path in folders]
    steps += [_read_step(path, f"{path.name} (beside it)") for path in measured_elsewhere(folder, steps)]
    return sorted(steps, key=lambda step: (not step.manifest.get("created"), str(step.manifest.get("created", ""))))


def measured_elsewhere(folder: Path, steps: Sequence[Step]) -> list[Path]:
    """Evaluations and drift measurements beside a folder that are of its steps and of nothing else."""
    known = {(step.id, step.manifest.get(key)) for step in steps for key in ("finished", "created")}
    known -= {(step.id, None) for step in steps}
    folders = []
    for path in sorted(folder.resolve().parent.glob("*/run.json")):
        manifest = read_object(path, [])
        source = manifest.get("from")
        runs = source.get("runs") if isinstance(source, dict) else None
        if manifest.get("stage") not in MEASURING or not isinstance(runs, list) or not runs:
            continue
        # A run that was done again since is another one, so what counts is when it was finished.
        if path.parent != folder.resolve() and all(isinstance(run, dict) and _when(run) in known for run in runs):
            folders.append(path.parent)
    return folders


def _when(source: dict[str, Any]) -> tuple[str, Any]:
    return Path(str(source.get("run"))).name, source.get("finished") or source.get("created")


def _read_step(folder: Path, id: str | None = None) -> Step:
    step = Step(id or folder.resolve().name, folder)
    step.manifest = read_object(folder / "run.json", step.notes)
    step.summary = read_object(folder / "summary.json", step.notes) or read_object(folder / "drift.json", step.notes)
    step.study = read_object(folder / "study.json", step.notes)
    step.teacher = read_object(folder / "teacher.json", step.notes)
    step.metrics = _read_lines(folder / "metrics.jsonl", step.notes)
    step.warnings = _read_lines(folder / "warnings.jsonl", step.notes)
    step.showcase = [_checked_image(card, step.notes) for card in _read_lines(folder / "showcase.jsonl", step.notes)]
    step.rollouts = [_checked_images(row, step.notes) for row in _read_lines(folder / "rollouts.jsonl", step.notes)]
    step.questions = [_inline_only(row, step.notes) for row in _read_lines(folder / "questions.jsonl", step.notes)]
    for name, by_run in (("samples", step.samples), ("attribution", step.causes)):
        for path in sorted(folder.glob(f"{name}-*.jsonl")):
            by_run[path.stem.removeprefix(f"{name}-")] = _read_lines(path, step.notes)
    if (folder / "recipe.yaml").is_file():
        step.recipe = (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    return step


def read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON file's object; {} without one, and a note where it can't be read."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        notes.append(f"{path.name} can't be read: {error}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} is not a JSON object")
        return {}
    return value


def _read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line without its end is one still being written."""
    if not path.is_file():
        return []
    text, rows = path.read_text(encoding="utf-8", errors="replace"), []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            if number <= text.count("\n"):
                notes.append(f"{path.name} line {number} can't be read and is left out")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            notes.append(f"{path.name} line {number} is not a JSON object and is left out")
    return rows


def _checked_image(card: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The card without its picture unless that is plain inline PNG or JPEG data."""
    image = card.get("image")
    if image is None or _is_inline(image):
        return card
    notes.append("showcase.jsonl: a picture that is not inline PNG or JPEG data is left out")
    return {**card, "image": None, "image_dropped": True}


def _checked_images(row: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The line with no pictures but those that are plain inline PNG or JPEG data."""
    checked = []
    for prompt in row["prompts"] if isinstance(row.get("prompts"), list) else []:
        checked.append(_inline_only(prompt, notes, "rollouts.jsonl") if isinstance(prompt, dict) else prompt)
    return {**row, "prompts": checked}


def _inline_only(prompt: dict[str, Any], notes: list[str], file: str = "questions.jsonl") -> dict[str, Any]:
    images = prompt.get("images")
    if not isinstance(images, list) or all(map(_is_inline, images)):
        return prompt
    notes.append(f"{file}: a picture that is not inline PNG or JPEG data is left out")
    return {**prompt, "images": list(filter(_is_inline, images)), "image_dropped": True}


def _is_inline(image: Any) -> bool:
    return isinstance(image, str) and _IMAGE.fullmatch(image) is not None
