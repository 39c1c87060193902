"""The processes of a stage, as its recipe's `launch` says."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from prism_cli import processes
from prism_cli.assembly.run_folder import resolve_launch
from prism_cli.launching import launcher, nodes
from prism_cli.launching.command import Launch, check_machine
from prism_cli.launching.launcher import KilledError
from prism_cli.progress import say
from prism_cli.recipes.identity import run_folder, to_yaml
from prism_cli.recipes.pipelines import steps_of
from prism_cli.recipes.section import Section
from prism_cli.recipes.sources import command_of, file_name
from prism_cli.recipes.stages import TrainingStage, WarmupRecipe
from prism_cli.recipes.steps import resolve_steps
from prism_cli.runs.folder import tell_killed


def launch_of(recipe: Section) -> Launch:
    """The processes of a recipe's stage: one, where it has no `launch`."""
    if not isinstance(recipe, TrainingStage | WarmupRecipe):
        return Launch()
    return resolve_launch(recipe.launch)


def launches_of(stage: str, recipe: Section, base: Path) -> list[Launch]:
    """The processes of every stage that a command runs: its own, or those of a pipeline's steps.

    Args:
        stage: Its command.
        recipe: Its recipe.
        base: Folder that the recipe files of steps are relative to.
    """
    steps = steps_of(recipe)
    if not steps:
        return [launch_of(recipe)]
    return [launch_of(one) for _, one in resolve_steps(steps, base, run_folder(stage, recipe), None)]


def to_start(recipe: Section) -> Launch | None:
    """The processes that are still to be started for a recipe's stage; None where it runs in this one."""
    launch = launch_of(recipe)
    return launch if (launch.world_size > 1 or launch.zero is not None) and not processes.launched() else None


def run(stage: str, recipe: Section, fresh: bool, typed: Sequence[str]) -> bool:
    """Runs a stage in processes of its own, to their end; gives whether this is the first node.

    Args:
        stage: Its command.
        recipe: Its resolved recipe.
        fresh: Start over.
        typed: The command line, for the record.

    Raises:
        RecipeError: they can't be started here.
        PrismError: see `launcher.run`.
        KeyboardInterrupt: interrupted; Terminated: on SIGTERM.
    """
    launch = launch_of(recipe)
    check_machine(launch)
    place = nodes.place(launch.nodes)
    say(f"processes: {launch.describe()}")
    with tempfile.TemporaryDirectory(prefix="prism-") as name:
        file = Path(name) / file_name(stage)
        file.write_text(to_yaml(recipe), encoding="utf-8")
        words = [*command_of(stage).split(), str(file), *(["--fresh"] if fresh else [])]
        try:
            launcher.run(words, launch, place, Path(name), typed)
        except KilledError:
            tell_killed(run_folder(stage, recipe))
            raise
    return place.node == 0
