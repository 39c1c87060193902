"""Steps of a pipeline, each with its resolved recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prism_cli.errors import RecipeError
from prism_cli.recipes.load import load_step
from prism_cli.recipes.pipelines import PipelineStep
from prism_cli.recipes.stages import AlignRecipe, EvalRecipe, TrainingStage, WarmupRecipe
from prism_cli.runs.references import DISCRIMINATOR

StepRecipe = TrainingStage | WarmupRecipe | EvalRecipe


def resolve_steps(
    steps: Sequence[PipelineStep],
    base: Path,
    folder: Path,
    seed: int | None,
    earlier: Mapping[str, Path] | None = None,
    warmed: Mapping[str, Path] | None = None,
) -> list[tuple[PipelineStep, StepRecipe]]:
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
            discriminator that is not warmed up.
    """
    trained, discriminators = dict(earlier or {}), dict(warmed or {})
    resolved = []
    for step in steps:
        id = step.id or step.stage
        options: dict[str, Any] = {"output": str(folder / id)} | ({} if seed is None else {"seed": seed})
        if step.stage == "eval":
            recipe = load_step(step, base, options)
            recipe = recipe.model_copy(update={"runs": _evaluated(id, recipe.runs, trained)})
        else:
            recipe = load_step(step, base, options | _start(step, trained) | _discriminator(step, discriminators))
            if recipe.from_ is None and recipe.model is None:
                raise RecipeError(f"step {id!r} has no model to start from", "give `model` in its recipe")
            (discriminators if step.stage == "warmup" else trained)[id] = folder / id
        resolved.append((step, recipe))
    return resolved


def _evaluated(id: str, names: Sequence[str], trained: Mapping[str, Path]) -> tuple[str, ...]:
    """The folders of the steps that an evaluation names, or of all there are."""
    chosen = names or tuple(trained)
    if unknown := [name for name in chosen if name not in trained]:
        raise RecipeError(f"step {id!r} evaluates {', '.join(unknown)}, no earlier training step")
    return tuple(str(trained[name]) for name in chosen)


def _start(step: PipelineStep, trained: Mapping[str, Path]) -> dict[str, str]:
    names_model = any(key.partition(".")[0] == "model" for key in step.set)
    start = step.from_ or (list(trained)[-1] if trained and not names_model else None)
    if start is None:
        return {}
    if start not in trained:
        raise RecipeError(f"step {step.id or step.stage!r} starts from {start!r}, which is no earlier training step")
    return {"from": str(trained[start])}


def _discriminator(step: PipelineStep, warmed: Mapping[str, Path]) -> dict[str, str]:
    if step.discriminator is None:
        return {}
    if step.discriminator not in warmed:
        raise RecipeError(
            f"step {step.id or step.stage!r} takes the discriminator of {step.discriminator!r}, "
            "which is no earlier warm-up step"
        )
    return {"discriminator.path": str(warmed[step.discriminator] / DISCRIMINATOR)}


def starts_of(recipe: StepRecipe) -> list[str]:
    """The runs that a step starts from, or evaluates."""
    if isinstance(recipe, EvalRecipe):
        return list(recipe.runs)
    return [] if recipe.from_ is None else [recipe.from_]


def before_warm_up(recipe: StepRecipe) -> StepRecipe:
    """The recipe of a step without the discriminator that an earlier step will warm up."""
    if not isinstance(recipe, AlignRecipe):
        return recipe
    return recipe.model_copy(update={"discriminator": recipe.discriminator.model_copy(update={"path": None})})
