"""Steps of a pipeline, each with its resolved recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prism_cli.errors import RecipeError
from prism_cli.recipes.load import load_step
from prism_cli.recipes.pipelines import PipelineStep
from prism_cli.runs.references import DISCRIMINATOR


def resolve_steps(
    steps: Sequence[PipelineStep],
    base: Path,
    folder: Path,
    seed: int | None,
    earlier: Mapping[str, Path] | None = None,
    warmed: Mapping[str, Path] | None = None,
) -> list[tuple[PipelineStep, Any]]:
    """Each step with its resolved recipe: where it starts, its folder and its seed decided here.

    Args:
        steps: In order.
        base: Folder their recipe files are relative to.
        folder: Each step gets a folder in it, named as the step.
        seed: Replaces the seed of every step, unless None.
        earlier: Training steps before these, id → folder, in order.
        warmed: Warm-up steps before these, id → folder.

    Raises:
        RecipeError: a step's recipe is wrong, or a step starts from nothing, evaluates what is not trained, or names a
            judge that is not warmed up.
    """
    trained, judges = dict(earlier or {}), dict(warmed or {})
    result = []
    for step in steps:
        id = step.id or step.stage
        options: dict[str, Any] = {"output": str(folder / id)}
        if seed is not None:
            options["seed"] = seed
        if step.stage == "eval":
            resolved = load_step(step, base, options)
            chosen = resolved.runs or tuple(trained)
            if unknown := [name for name in chosen if name not in trained]:
                raise RecipeError(f"step {id!r} evaluates {', '.join(unknown)}, no earlier training step")
            resolved = resolved.model_copy(update={"runs": tuple(str(trained[name]) for name in chosen)})
        else:
            anew = any(key.partition(".")[0] == "model" for key in step.set)
            start = step.from_ or (list(trained)[-1] if trained and not anew else None)
            if start is not None and start not in trained:
                raise RecipeError(f"step {id!r} starts from {start!r}, which is no earlier training step")
            if start is not None:
                options["from"] = str(trained[start])
            if step.judge is not None:
                if step.judge not in judges:
                    raise RecipeError(f"step {id!r} has the judge of {step.judge!r}, which is no earlier warm-up step")
                options["discriminator.path"] = str(judges[step.judge] / DISCRIMINATOR)
            resolved = load_step(step, base, options)
            if start is None and resolved.from_ is None and resolved.model is None:
                raise RecipeError(f"step {id!r} has no model to start from", "give `model` in its recipe")
            (judges if step.stage == "warmup" else trained)[id] = folder / id
        result.append((step, resolved))
    return result
