"""`prism run`: any list of stages as one resumable pipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import get_console

from prism_cli.errors import RecipeError
from prism_cli.recipes.identity import run_folder
from prism_cli.recipes.load import load_step
from prism_cli.recipes.stages import EvalRecipe, PipelineRecipe, PipelineStep
from prism_cli.stages import align, build, eval, report, rl, sft
from prism_cli.stages.checks import Plan

STAGES = {"sft": sft, "align": align, "rl": rl, "eval": eval}


def check(recipe: PipelineRecipe, base: Path) -> Plan:
    """What would be done; loads every step's recipe.

    Args:
        recipe: The pipeline.
        base: Folder of its file; steps' recipes are relative to it.

    Raises:
        RecipeError: a step's recipe is wrong, or a step starts from nothing.
    """
    plan = []
    for step, resolved in _steps(recipe, base):
        STAGES[step.stage].check(resolved, pending=True)
        sources = resolved.runs if isinstance(resolved, EvalRecipe) else (resolved.from_,)
        names = ", ".join(Path(source).name for source in sources if source)
        plan.append((step.id or step.stage, f"prism {step.stage}" + (f" from {names}" if names else "")))
    return plan


def run(recipe: PipelineRecipe, base: Path, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues all steps in order; gives the pipeline's folder.

    Raises:
        PrismError: with the cure in its hint; what finished before stays finished.
    """
    check(recipe, base)
    steps = _steps(recipe, base)
    folder = run_folder("run", recipe)
    whole = build.open_stage(recipe.model_copy(update={"output": str(folder)}), "run", None, fresh, command)
    console = get_console()
    from prism_cli.models import free_memory

    with whole.working():
        for number, (step, resolved) in enumerate(steps, start=1):
            console.rule(f"[bold]{step.id or step.stage}[/bold]  {number} of {len(steps)}", align="left")
            STAGES[step.stage].run(resolved, fresh=False, command=command)
            free_memory()
            report.write(folder)
    return folder


def _steps(recipe: PipelineRecipe, base: Path) -> list[tuple[PipelineStep, Any]]:
    """Each step with its resolved recipe: where it starts, its folder and its seed decided by the pipeline."""
    folder = run_folder("run", recipe)
    trained: list[str] = []
    result = []
    for step in recipe.steps:
        id = step.id or step.stage
        options: dict[str, Any] = {"output": str(folder / id)}
        if recipe.seed is not None:
            options["seed"] = recipe.seed
        if step.stage == "eval":
            resolved = load_step(step, base, options)
            chosen = resolved.runs or tuple(trained)
            if unknown := [name for name in chosen if name not in trained]:
                raise RecipeError(f"step {id!r} evaluates {', '.join(unknown)}, no earlier training step")
            resolved = resolved.model_copy(update={"runs": tuple(str(folder / name) for name in chosen)})
        else:
            start = step.from_ or (trained[-1] if trained else None)
            if start is not None:
                options["from"] = str(folder / start)
            resolved = load_step(step, base, options)
            if start is None and resolved.from_ is None and resolved.model is None:
                raise RecipeError(f"step {id!r} has no model to start from", "give `model` in its recipe")
            trained.append(id)
        result.append((step, resolved))
    return result
