"""`prism run`: any list of stages as one resumable pipeline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import get_console

from prism_cli.errors import RecipeError
from prism_cli.recipes.identity import run_folder
from prism_cli.recipes.load import load_step
from prism_cli.recipes.pipelines import PipelineRecipe, PipelineStep
from prism_cli.recipes.sources import command_of
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.stages import align, build, eval, launch, report, rl, sft, warmup
from prism_cli.stages.checks import Plan

STAGES = {"sft": sft, "warmup": warmup, "align": align, "rl": rl, "eval": eval}


def check(recipe: PipelineRecipe, base: Path) -> Plan:
    """What would be done; loads every step's recipe.

    Args:
        recipe: The pipeline.
        base: Folder of its file; steps' recipes are relative to it.

    Raises:
        RecipeError: a step's recipe is wrong, or a step starts from nothing.
    """
    plan = []
    for step, resolved in resolve_steps(recipe.steps, base, run_folder("run", recipe), recipe.seed):
        check_step(step, resolved)
        sources = resolved.runs if isinstance(resolved, EvalRecipe) else (resolved.from_,)
        names = ", ".join(Path(source).name for source in sources if source)
        how = f", processes: {launch.describe(resolved)}" if launch.needed(resolved) else ""
        plan.append((step.id or step.stage, f"prism {command_of(step.stage)}{f' from {names}' if names else ''}{how}"))
    return plan


def run(recipe: PipelineRecipe, base: Path, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues all steps in order; gives the pipeline's folder.

    Raises:
        PrismError: with the cure in its hint; what finished before stays finished.
    """
    check(recipe, base)
    folder = run_folder("run", recipe)
    steps = resolve_steps(recipe.steps, base, folder, recipe.seed)
    whole = build.open_stage(recipe.model_copy(update={"output": str(folder)}), "run", None, fresh, command)
    console = get_console()
    from prism_cli.models import free_memory

    with whole.working():
        for number, (step, resolved) in enumerate(steps, start=1):
            console.rule(f"[bold]{step.id or step.stage}[/bold]  {number} of {len(steps)}", align="left")
            run_step(step, resolved, command)
            free_memory()
            report.write(folder)
    return folder


def run_step(step: PipelineStep, resolved: Any, command: Sequence[str] = ()) -> None:
    """Runs or continues a step, in processes of its own where its recipe wants several."""
    if launch.needed(resolved):
        launch.run(step.stage, resolved, False, command)
    else:
        STAGES[step.stage].run(resolved, fresh=False, command=command)


def check_step(step: PipelineStep, resolved: Any) -> None:
    """Finds what is wrong with a step; what earlier steps make need not be there yet.

    Raises:
        PrismError: see the stage's `check`.
    """
    if step.judge is not None:
        resolved = resolved.model_copy(
            update={"discriminator": resolved.discriminator.model_copy(update={"path": None})}
        )
    if launch.needed(resolved):
        if resolved.launch.nodes > 1:
            raise RecipeError(
                f"step {step.id or step.stage!r} wants {resolved.launch.nodes} nodes, and a pipeline runs on one",
                "run its stages by their own commands, one after another (docs/launch.md)",
            )
        launch.check(resolved)
    STAGES[step.stage].check(resolved, pending=True)


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
                options["discriminator.path"] = str(judges[step.judge] / warmup.DISCRIMINATOR)
            resolved = load_step(step, base, options)
            if start is None and resolved.from_ is None and resolved.model is None:
                raise RecipeError(f"step {id!r} has no model to start from", "give `model` in its recipe")
            (judges if step.stage == "warmup" else trained)[id] = folder / id
        result.append((step, resolved))
    return result
