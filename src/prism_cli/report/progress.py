"""Progress of a study: every arm of every seed, what it does now or how it ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.report.folder import Step, read_object


class Progress(NamedTuple):
    """A study that is not done.

    Attributes:
        seeds: The columns.
        arms: (arm, its state and step a seed); the state is "" for one not begun.
        rest: What to say of one not begun.
        caption: How many are done.
    """

    seeds: list[str]
    arms: list[tuple[str, list[tuple[str, str]]]]
    rest: str
    caption: str


def progress(step: Step) -> Progress | None:
    """The table of a study's arms and seeds; None where all are done, or it is no study."""
    recipe = step.manifest.get("recipe")
    if step.manifest.get("stage") != "compare" or not isinstance(recipe, Mapping):
        return None
    names, numbers = recipe.get("arms"), recipe.get("seeds")
    if not isinstance(names, Mapping) or not isinstance(numbers, list):
        return None
    seeds, failed = [str(seed) for seed in numbers], step.study.get("failed")
    arms = []
    for name, steps in names.items():
        # An arm ends with its evaluation.
        row = [_state(step.place / f"seed-{seed}" / str(name), _count(steps) + 1) for seed in seeds]
        for place, seed in enumerate(seeds):
            ended = isinstance(failed, Mapping) and f"seed {seed}, {name}" in failed
            if ended and row[place][0] not in ("finished", "running"):
                row[place] = ("failed", "failed")
        arms.append((str(name), row))
    done = sum(state == "finished" for _, row in arms for state, _ in row)
    if done == len(arms) * len(seeds):
        return None
    shared = [_state(step.place / f"seed-{seed}", _count(recipe.get("shared"))) for seed in seeds]
    caption = f"{done} of {len(arms) * len(seeds)} are done: {len(arms)} arms, {len(seeds)} seeds."
    rest = "waiting" if step.manifest.get("status") == "running" else "not run"
    return Progress(seeds, [*([("shared steps", shared)] if any(s for s, _ in shared) else []), *arms], rest, caption)


def _count(steps: Any) -> int:
    return len(steps) if isinstance(steps, list) else 0


def _state(folder: Path, wanted: int) -> tuple[str, str]:
    """The state of what has so many steps, and what to say of it."""
    manifests: list[dict[str, Any]] = [read_object(path, []) for path in folder.glob("*/run.json")]
    if not manifests:
        return "", ""
    last = max(manifests, key=lambda manifest: str(manifest.get("created", "")))
    state, name = str(last.get("status", "unknown")), str(last.get("id", "–"))
    if state != "finished":
        return state, f"{name} {state}"
    return ("finished", "done") if len(manifests) >= wanted else ("between", f"{name} done")
