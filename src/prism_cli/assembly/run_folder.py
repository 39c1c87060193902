"""From recipe sections to machinery: policy, rows, teacher, run folder. The only room that knows both sides."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prism_cli import processes
from prism_cli.errors import RecipeError
from prism_cli.progress import say
from prism_cli.recipes.identity import differences, run_folder, to_dict, to_yaml
from prism_cli.recipes.launch import LaunchSection
from prism_cli.recipes.section import Section
from prism_cli.recipes.stages import Stage
from prism_cli.runs.folder import Run, open_run
from prism_cli.runs.references import read_manifest, resolve_model


def open_stage(
    recipe: Section,
    stage: str,
    source: dict[str, Any] | None,
    fresh: bool,
    command: Sequence[str],
    compared: bool = True,
    growing: Sequence[str] = (),
) -> Run:
    """Opens the stage's run folder, new or to be continued.

    Args:
        recipe: The resolved recipe.
        stage: Its command.
        source: Lineage, see `open_run`.
        fresh: Start over.
        command: The command line, for the record.
        compared: Whether another recipe on the same folder is refused.
        growing: Keys that may have gained since, see `differences`.

    Raises:
        RecipeError: started on another number of processes than the recipe's `launch` says.
        CheckpointError: see `open_run`.
    """
    launch = getattr(recipe, "launch", None)
    _check_processes(stage, launch)
    processes.start()
    quiet_libraries()
    run = processes.from_main(
        lambda: open_run(
            run_folder(stage, recipe),
            stage,
            to_dict(recipe),
            to_yaml(recipe),
            partial(differences, growing=growing) if compared else lambda old, new: [],
            source=source,
            fresh=fresh,
            command=command,
        )
    )
    if launch is not None:
        run.update(launch={"processes": launch.world_size, "nodes": launch.nodes, "zero": launch.zero})
    return run


def _check_processes(stage: str, launch: LaunchSection | None) -> None:
    there = processes.world_size()
    if launch is None and there > 1:
        raise RecipeError(f"`prism {stage}` runs as one process", "start it without torchrun or accelerate launch")
    if launch is None or launch.world_size == there:
        return
    wanted = f"launch.processes {launch.processes} × launch.nodes {launch.nodes} = {launch.world_size}"
    if not processes.launched():
        raise RecipeError(
            f"`prism {stage}`: {wanted} processes, and this is one alone", "start it as the command `prism` does"
        )
    raise RecipeError(
        f"`prism {stage}` was started on {there} processes, and its recipe says {wanted}",
        f"give launch.processes={there // launch.nodes or 1}, or start {launch.world_size}",
    )


def already_done(run: Run) -> bool:
    """Whether the stage has nothing left to do; says so."""
    if run.finished:
        say(f"{run.folder} is finished; --fresh starts it over")
    return run.finished


# Policy --------------------------------------------------------------------------------------------------------------


def lineage(recipe: Stage) -> dict[str, Any] | None:
    """What the manifest records of where a stage started."""
    return resolve_model(recipe.from_)[1] if recipe.from_ else None


# Adapters ------------------------------------------------------------------------------------------------------------


# Rows ----------------------------------------------------------------------------------------------------------------


# Quiet ---------------------------------------------------------------------------------------------------------------


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
    # What it logs as an error it also raises, and that is told with where and what to do.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|accelerate|peft)(\.|$)")


def _grave(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def run_names(references: Sequence[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Run id → reference; an id that two runs share is written with its run's name, or else with its whole path.

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
        named.append(known.get(_place(reference), own))
    if repeated := {name for name in named if named.count(name) > 1}:
        raise RecipeError(f"runs are named alike: {', '.join(sorted(repeated))}", "name each run once")
    return dict(zip(named, references, strict=True))


def _place(reference: str) -> str:
    source = resolve_model(reference)[1]
    return f"{source['run']}@{source['checkpoint'] or ''}"
