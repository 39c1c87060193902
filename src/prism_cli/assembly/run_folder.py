"""The run folder of a stage: opened, held while the stage works, and left with how it ended."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prism_cli import processes
from prism_cli.errors import RecipeError
from prism_cli.launching.command import Launch
from prism_cli.progress import say
from prism_cli.recipes.identity import differences, run_folder, to_dict, to_yaml
from prism_cli.recipes.launch import LaunchSection
from prism_cli.recipes.section import Section
from prism_cli.recipes.stages import Stage
from prism_cli.runs.folder import Run, open_run
from prism_cli.runs.references import read_manifest, resolve_model

Changed = Callable[[dict[str, Any], dict[str, Any]], list[str]]


@contextmanager
def stage_run(
    stage: str,
    recipe: Section,
    source: dict[str, Any] | None,
    fresh: bool,
    command: Sequence[str],
    changed: Changed = differences,
) -> Iterator[Run]:
    """The frame of a stage that runs as one process: its run folder, opened, held while it works, and left with how it
    ended. In a finished run there is nothing left to do: it says so and the block is to leave.

    Args:
        stage: Its command.
        recipe: The resolved recipe.
        source: Lineage, see `open_run`.
        fresh: Start over.
        command: The command line, for the record.
        changed: Names the keys in which the recipe there and this one differ; none, and the run is continued.

    Raises:
        RecipeError: started on several processes.
        CheckpointError: see `open_run`.
    """
    check_processes(stage)
    with worked_in(open_stage(stage, recipe, source, fresh, command, changed)) as run:
        yield run


@contextmanager
def worked_in(run: Run) -> Iterator[Run]:
    """Holds a run's folder while its stage works; of a finished run it says that nothing is left to do."""
    if run.finished:
        say(f"{run.folder} is finished; --fresh starts it over")
        yield run
        return
    with run.working():
        yield run


def open_stage(
    stage: str,
    recipe: Section,
    source: dict[str, Any] | None,
    fresh: bool,
    command: Sequence[str],
    changed: Changed = differences,
) -> Run:
    """Opens a stage's run folder, new or to be continued; see `stage_run`."""
    processes.start()
    quiet_libraries()
    folder = run_folder(stage, recipe)
    return processes.from_main(
        lambda: open_run(
            *(folder, stage, to_dict(recipe), to_yaml(recipe), changed), source=source, fresh=fresh, command=command
        )
    )


def resolve_launch(section: LaunchSection) -> Launch:
    """The processes of a section."""
    return Launch(**section.model_dump())


def check_processes(stage: str, processes_a_node: int | None = None, nodes: int = 1) -> None:
    """Refuses a stage on another number of processes than its recipe says.

    Args:
        stage: Its command.
        processes_a_node: `launch.processes`; None for a stage that runs as one process.
        nodes: `launch.nodes`.

    Raises:
        RecipeError: there are more or fewer.
    """
    world_size = processes.world_size()
    if processes_a_node is None and world_size > 1:
        raise RecipeError(f"`prism {stage}` runs as one process", "start it without torchrun or accelerate launch")
    if processes_a_node is None or processes_a_node * nodes == world_size:
        return
    wanted = f"launch.processes {processes_a_node} × launch.nodes {nodes} = {processes_a_node * nodes}"
    if not processes.launched():
        raise RecipeError(
            f"`prism {stage}`: {wanted} processes, and this is one alone", "start it as the command `prism` does"
        )
    raise RecipeError(
        f"`prism {stage}` was started on {world_size} processes, and its recipe says {wanted}",
        f"give launch.processes={world_size // nodes or 1}, or start {processes_a_node * nodes}",
    )


def lineage(recipe: Stage) -> dict[str, Any] | None:
    """The start of a stage, as its manifest records it."""
    return resolve_model(recipe.from_)[1] if recipe.from_ else None


def quiet_libraries() -> None:
    """Silences the libraries' own progress bars and notices; ours say what matters."""
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("httpx", "openai", "accelerate", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Each time it is imported, be it by another library, it warns of a machine without a GPU.
    logging.getLogger("DeepSpeed").addFilter(_grave)
    # What it logs as an error it also raises, and that error is printed.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|accelerate|peft)(\.|$)")


def _grave(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def run_names(references: Sequence[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Run id → reference; an id that two runs share is written with its run's name, or else with its path.

    Args:
        references: Runs, or `RUN@step`.
        known: Place of a run → the name it goes by already.
    """
    known = known or {}
    manifests = [read_manifest(Path(resolve_model(reference)[1]["run"])) for reference in references]
    checkpoints = [resolve_model(reference)[1]["checkpoint"] for reference in references]
    marks = ["" if checkpoint is None else f"@{checkpoint}" for checkpoint in checkpoints]
    ids = [manifest["id"] + mark for manifest, mark in zip(manifests, marks, strict=True)]
    longer = [
        f"{manifest['name']}-{id}" if ids.count(id) > 1 else id for manifest, id in zip(manifests, ids, strict=True)
    ]
    named = []
    for at, reference in enumerate(references):
        path = "-".join(part for part in Path(reference.partition("@")[0]).parts if part not in ("/", ".."))
        own = longer[at] if longer.count(longer[at]) == 1 else f"{path}{marks[at]}"
        named.append(known.get(run_place(reference), own))
    if repeated := {name for name in named if named.count(name) > 1}:
        raise RecipeError(f"runs are named alike: {', '.join(sorted(repeated))}", "name each run once")
    return dict(zip(named, references, strict=True))


def run_place(reference: str) -> str:
    """The run of a reference and its checkpoint, `FOLDER@step`: the same however it is written."""
    source = resolve_model(reference)[1]
    return f"{source['run']}@{source['checkpoint'] or ''}"
