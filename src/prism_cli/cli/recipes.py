"""`prism recipes list | show | copy | check`."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich import get_console
from rich.table import Table

from prism_cli.cli.conduct import print_yaml
from prism_cli.errors import RecipeError

recipes = typer.Typer(
    name="recipes", help="List, print and copy shipped recipes; check your own.", no_args_is_help=True
)


def _complete_name(incomplete: str) -> list[str]:
    from prism_cli.recipes.sources import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


NameArgument = Annotated[str, typer.Argument(metavar="NAME", autocompletion=_complete_name)]


@recipes.command(name="list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the shipped recipes and what each needs."""
    from prism_cli.recipes.sources import shipped

    rows = {name: _first_comment(path) for name, path in shipped().items()}
    if as_json:
        typer.echo(json.dumps([{"name": name, "about": about} for name, about in rows.items()], indent=2))
        return
    table = Table("recipe", "about")
    for name, about in rows.items():
        table.add_row(name, about)
    get_console().print(table)


@recipes.command()
def show(name: NameArgument) -> None:
    """Print a shipped recipe, or all of a set."""
    for path in _named(name).values():
        print_yaml(path.read_text(encoding="utf-8"))


@recipes.command()
def copy(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A recipe, or a set such as tiny.", autocompletion=_complete_name),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Target folder; created if missing.")],
) -> None:
    """Copy a shipped recipe, or all of a set, for editing. Existing files are never overwritten."""
    targets = {path: folder / path.name for path in _named(name).values()}
    if present := [str(target) for target in targets.values() if target.exists()]:
        raise RecipeError(f"already there: {', '.join(present)}", "choose another folder, or move these away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in targets.items():
            shutil.copyfile(source, target)
            typer.echo(target)
    except OSError as error:
        raise RecipeError(f"can't write to {folder}: {error.strerror}", "choose another folder") from None


@recipes.command()
def check(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Recipe files; none for the shipped ones.")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help="Stage of the recipe (sft, align, rl, eval, run, …), if the file's name does not contain it.",
        ),
    ] = None,
) -> None:
    """Check recipes: keys, types and values, and the steps of pipelines and studies. Nothing is run."""
    from prism_cli.recipes.sources import STAGES, shipped, stage_of

    problems = []
    for path in paths or shipped().values():
        found = stage or stage_of(path)
        if found not in STAGES:
            raise RecipeError(
                f"{path}: the name does not contain the stage", f"give --stage, one of {', '.join(STAGES)}"
            )
        wrong = _problems(found, path)
        typer.echo(f"{'wrong' if wrong else 'ok   '}  {path}")
        problems += wrong
    if problems:
        raise RecipeError("\n".join(problems), "docs/recipes.md lists every key")


def _problems(stage: str, path: Path) -> list[str]:
    from prism_cli.recipes.load import load_recipe, load_step
    from prism_cli.recipes.pipelines import steps_of

    try:
        recipe = load_recipe(stage, path)
    except RecipeError as error:
        return [str(error)]
    problems = []
    for step in steps_of(recipe):
        try:
            load_step(step, path.parent)
        except RecipeError as error:
            problems.append(f"{path}, step {step.id or step.stage!r}: {error}")
    return problems


def _named(name: str) -> dict[str, Path]:
    """The shipped recipe of a name, or all of a set."""
    from prism_cli.recipes.sources import shipped

    known = shipped()
    if name in known:
        return {name: known[name]}
    if found := {n: path for n, path in known.items() if n.startswith(f"{name}/")}:
        return found
    raise RecipeError(f"no shipped recipe is called {name!r}", f"there are: {', '.join(known)}")


def _first_comment(path: Path) -> str:
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""
