"""`prism run`: any list of stages as one resumable pipeline."""

from collections.abc import Sequence
from pathlib import Path

from rich import get_console

from prism_cli.assembly import launch, report
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.run_folder import check_processes, open_stage
from prism_cli.errors import RecipeError
from prism_cli.launching.command import check_machine
from prism_cli.recipes.identity import run_folder
from prism_cli.recipes.pipelines import PipelineRecipe, PipelineStep
from prism_cli.recipes.sources import command_of
from prism_cli.recipes.steps import StepRecipe, before_warm_up, resolve_steps, starts_of
from prism_cli.stages import align, eval, rl, sft, warmup

STAGES = {"sft": sft, "warmup": warmup, "align": align, "rl": rl, "eval": eval}


def check(recipe: PipelineRecipe, base: Path) -> Plan:
    """The plan; loads every step's recipe.

    Args:
        recipe: The pipeline.
        base: Folder of its file; steps' recipes are relative to it.

    Raises:
        RecipeError: a step's recipe is wrong, or a step starts from nothing.
    """
    plan = []
    for step, resolved in resolve_steps(recipe.steps, base, run_folder("run", recipe), recipe.seed):
        check_step(step, resolved)
        names = ", ".join(Path(source).name for source in starts_of(resolved))
        several = launch.to_start(resolved)
        how = f", processes: {several.describe()}" if several else ""
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
    check_processes("run")
    pipeline = open_stage("run", recipe.model_copy(update={"output": str(folder)}), None, fresh, command)
    console = get_console()
    from prism_cli.models import free_memory

    with pipeline.working():
        for number, (step, resolved) in enumerate(steps, start=1):
            console.rule(f"[bold]{step.id or step.stage}[/bold]  {number} of {len(steps)}", align="left")
            run_step(step, resolved, command)
            free_memory()
            report.write(folder)
    return folder


def run_step(step: PipelineStep, resolved: StepRecipe, command: Sequence[str] = ()) -> None:
    """Runs or continues a step, in processes of its own where its recipe wants several."""
    if launch.to_start(resolved):
        launch.run(step.stage, resolved, False, command)
    else:
        STAGES[step.stage].run(resolved, fresh=False, command=command)


def check_step(step: PipelineStep, resolved: StepRecipe) -> None:
    """Finds what is wrong with a step; what earlier steps make need not be there yet.

    Raises:
        PrismError: see the stage's `check`.
    """
    if step.discriminator is not None:
        resolved = before_warm_up(resolved)
    if (several := launch.to_start(resolved)) is not None:
        if several.nodes > 1:
            raise RecipeError(
                f"step {step.id or step.stage!r} wants {several.nodes} nodes, and a pipeline runs on one",
                "run its stages by their own commands, one after another (docs/launch.md)",
            )
        check_machine(several)
    STAGES[step.stage].check(resolved, pending=True)
