"""Runs a stage for a command, or prints what it would do."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import get_console
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from prism_cli.cli.words import Words
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.progress import say

if TYPE_CHECKING:  # types of recipes cost a moment to import, and `prism --help` needs none
    from prism_cli.recipes.section import Section
    from prism_cli.recipes.stages import Stage


def resolve(stage: str, words: Words, chosen: dict[str, Any], *earlier: str) -> Any:
    """The recipe that a command's words and options come to.

    Args:
        stage: Whose recipe.
        words: A recipe and values that replace its own.
        chosen: What options set, by the recipe's keys.
        earlier: Stages it may start from when nothing says where, best first; see `start_from_newest`.

    Raises:
        RecipeError: with every problem.
    """
    from prism_cli.recipes.load import load_recipe

    recipe = load_recipe(stage, words.recipe, words.overrides, chosen)
    if earlier and (start := start_from_newest(recipe, *earlier)):
        recipe = load_recipe(stage, words.recipe, words.overrides, chosen | start)
    return recipe


def conduct(
    stage: str,
    recipe: "Section",
    dry_run: bool,
    resume: bool | None,
    base: Path | None = None,
    preview: int | None = None,
    sbatch: Path | None = None,
) -> None:
    """Runs a stage, in processes of its own where its recipe says so, or prints what it would do.

    With `dry_run` that is its recipe (stdout) and its plan (stderr), with `preview` what its teacher would be asked.

    Args:
        stage: sft, align, rl, eval or run.
        recipe: Its recipe.
        dry_run: Write nothing.
        resume: True insists on a run to continue, False starts over, None does what fits.
        base: Folder of a pipeline's file.
        preview: Print so many of the first requests its teacher would get, and do nothing else.
        sbatch: Write a Slurm batch script that runs the command, and do nothing else.

    Raises:
        PrismError: from the stage; or `resume` and nothing to continue.
    """
    from prism_cli.recipes.identity import run_folder, to_yaml

    folder = run_folder(stage, recipe)
    if resume and not (folder / "run.json").is_file():
        raise CheckpointError(f"there is no run to continue in {folder}", "leave out --resume to start one")
    where = () if base is None else (base,)
    if dry_run:
        print_yaml(to_yaml(recipe))
    module = import_module(f"prism_cli.stages.{stage}")  # here, because a wrong recipe should not wait for it
    if dry_run or preview is not None or sbatch is not None:
        lines = module.check(recipe, *where)
        from prism_cli.assembly import teacher_plan

        if preview is not None:
            typer.echo(teacher_plan.teacher_preview(stage, recipe, preview))
        elif sbatch is not None and not dry_run:
            _write_sbatch(stage, recipe, base, sbatch, resume)
        else:
            lines = [*lines, *teacher_plan.teacher_lines(stage, recipe), ("writes to", str(folder))]
            _print_launch_plan(stage, recipe, lines, elsewhere=sbatch is not None)
        return
    if not _work(stage, recipe, module, where, resume is False):
        return
    from prism_cli.assembly import report

    page = report.write(folder)
    get_console().print(f"[bold green]finished[/] {escape(str(folder))}", highlight=False, soft_wrap=True)
    get_console().print(f"report   {escape(str(page))}", highlight=False, soft_wrap=True)


def _work(stage: str, recipe: "Section", module: Any, where: tuple[Path, ...], fresh: bool) -> bool:
    """Runs the stage here or in processes of its own; whether this process tells how it went."""
    from prism_cli import processes
    from prism_cli.assembly import launch
    from prism_cli.launching import worker

    typed = worker.command()
    if launch.to_start(recipe):
        module.check(recipe)
        return launch.run(stage, recipe, fresh, typed)
    module.run(recipe, *where, fresh=fresh, command=typed)
    return processes.is_main() and not worker.by_prism()


def _print_launch_plan(stage: str, recipe: "Section", lines: list[tuple[str, str]], elsewhere: bool) -> None:
    """Prints the plan, and below it, on a line to be copied, what would start its processes.

    Args:
        stage: The command.
        recipe: Its recipe.
        lines: The plan so far.
        elsewhere: Another machine is to run it, so this one's GPUs don't matter.
    """
    from prism_cli.assembly import launch
    from prism_cli.launching.command import check_machine, shown
    from prism_cli.recipes.sources import command_of

    several = launch.to_start(recipe)
    if several is not None:
        lines = [*lines, ("processes", several.describe() if elsewhere else check_machine(several))]
    print_plan(command_of(stage), lines)
    if several is not None:
        typed = [word for word in sys.argv[1:] if word != "--dry-run"]
        console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        console.print("prism starts the processes itself, as this would:")
        console.print(shown(typed, several))


def _write_sbatch(stage: str, recipe: "Section", base: Path | None, file: Path, resume: bool | None) -> None:
    """Writes the batch script of the command that was typed."""
    from prism_cli.assembly.launch import launches_of
    from prism_cli.launching import slurm
    from prism_cli.recipes.identity import run_folder

    if resume is not None:
        raise RecipeError("--sbatch: the job continues whenever it is started", "leave out --resume and --fresh")
    typed = sys.argv[1:]
    where = next(index for index, word in enumerate(typed) if word.partition("=")[0] == "--sbatch")
    del typed[where : where + (1 if "=" in typed[where] else 2)]
    slurm.write(file, stage, launches_of(stage, recipe, base or Path()), typed, slurm.grace(run_folder(stage, recipe)))
    say(f"written {file}: look at its first lines, then hand it in with sbatch")


def start_from_newest(recipe: "Stage", *stages: str) -> dict[str, str]:
    """The option `from` for a recipe that says nowhere where to start: the newest finished run of the first stage that
    has one; said in one line.

    Args:
        recipe: As loaded so far.
        stages: Earlier stages, best first.
    """
    if recipe.model is not None or recipe.from_ is not None:
        return {}
    from prism_cli.runs.references import newest_finished

    for stage in stages:
        if (run := newest_finished(stage, Path("runs"))) is not None:
            text = f"starting from {run}, the newest finished {stage} run here (--from names another)"
            Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(text)
            return {"from": str(run)}
    return {}


def print_yaml(text: str) -> None:
    """Prints YAML to stdout, coloured on a terminal and untouched in a pipe."""
    from rich.syntax import Syntax

    console = get_console()
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        sys.stdout.write(text)


def print_plan(command: str, lines: list[tuple[str, str]]) -> None:
    """Prints on stderr what a command (its words after `prism`) would do."""
    table = Table(title=f"prism {command} would do this", title_justify="left", show_header=False)
    for what, detail in lines:
        table.add_row(Text(what), Text(detail))
    Console(stderr=True).print(table)
