"""Memory while a stage runs: measured beside the plan, and an error that says what to change when it has run out."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prism_cli import phases
from prism_cli.assembly.planned_job import MakeJob, job_ahead, job_loaded
from prism_cli.assembly.run_folder import check_processes, lineage, open_stage, worked_in
from prism_cli.errors import PrismError
from prism_cli.planning.job import GB, Job
from prism_cli.planning.memory import Moment, peaks
from prism_cli.planning.savings import Saving, best_savings
from prism_cli.recipes.stages import TrainingStage, WarmupRecipe
from prism_cli.runs.folder import Run

if TYPE_CHECKING:  # they import torch
    from prism_cli.models import Policy
    from prism_cli.trainers.memory import MemoryWatch

# What torch, its CPU allocator and vLLM say when there is none left.
MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "No available memory for the cache blocks",
    "Free memory on device",
)
REQUESTED = re.compile(r"(?:Tried|tried) to allocate ([\d.]+) (GiB|MiB|KiB|bytes)")
FREE = re.compile(r"of which ([\d.]+) (GiB|MiB|KiB|bytes) is free")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SEE_PLAN = "see `prism plan` for what each setting takes"


@contextmanager
def training_run(
    stage: str,
    recipe: TrainingStage | WarmupRecipe,
    make_job: MakeJob,
    fresh: bool,
    command: Sequence[str],
) -> Iterator[Run]:
    """The frame of a stage that trains, on as many processes as its recipe says; see `run_folder.stage_run`.

    Args:
        stage: Its command.
        recipe: The resolved recipe.
        make_job: Of the stage, for the advice.
        fresh: Start over.
        command: The command line, for the record.

    Raises:
        RecipeError: started on another number of processes than `launch` says.
        CheckpointError: see `open_run`.
        PrismError: out of memory, with advice.
    """
    launch = recipe.launch
    check_processes(stage, launch.processes, launch.nodes)
    run = open_stage(stage, recipe, lineage(recipe), fresh, command)
    run.update(launch={"processes": launch.world_size, "nodes": launch.nodes, "zero": launch.zero})
    with worked_in(run), fitting(lambda: job_ahead(recipe, make_job)):
        yield run


def memory_watch(make_job: MakeJob, policy: "Policy", run: Run) -> "MemoryWatch | None":
    """The callback that measures memory; None for models too small for a peak to mean anything.

    Args:
        make_job: Of the stage.
        policy: Loaded.
        run: Keeps what was measured.
    """
    from prism_cli.models import SMALL
    from prism_cli.trainers.memory import MemoryWatch, measurable

    if policy.model.num_parameters() < SMALL or not measurable():
        return None
    job = job_loaded(make_job, policy)
    loaded = policy.model.num_parameters() * policy.model.dtype.itemsize
    if job is not None and job.discriminator is not None:
        loaded += 4 * job.discriminator.shape.weights
    return MemoryWatch(None if job is None else trained_peak(job), loaded, run.update)


def trained_peak(job: Job) -> float:
    """Bytes of tensors that training will take at most; what comes before it, and holes between them, left out."""
    return max(
        moment.total - moment.parts.get("CUDA and holes", 0) - moment.parts.get("vLLM", 0)
        for phase, moment in peaks(job).items()
        if phase != phases.WARM_UP
    )


@contextmanager
def fitting(job: Callable[[], Job | None]) -> Iterator[None]:
    """Turns running out of memory into an error with advice.

    Args:
        job: Makes the stage's job, once memory has run out.

    Raises:
        PrismError: where, how much was asked for, and which setting to change.
    """
    phases.enter()
    try:
        yield
    except (RuntimeError, ValueError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(job, error) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory has run out."""
    return isinstance(error, MemoryError) or any(message in str(error) for message in MESSAGES)


def out_of_memory(job: Callable[[], Job | None], error: BaseException) -> PrismError:
    """The error with its phase and step, what was asked for, and what would make it fit."""
    phase, step = phases.place()
    text = str(error)
    requested, free = _bytes(REQUESTED, text), _bytes(FREE, text)
    if free is None and "GPU" not in text and "CUDA" not in text:
        free = _free_main_memory()
    amounts = [f"{_size(requested)} more asked for"] if requested else []
    amounts += [f"{_size(free)} free"] if free is not None else []
    when = "" if step is None else f" of step {step}"
    where = f"in the {phase}{when}" if phase else "while loading"
    message = f"out of memory {where}" + (f": {', '.join(amounts)}" if amounts else "")
    return PrismError(message, _advice(job, phase))


def _bytes(pattern: re.Pattern[str], text: str) -> float | None:
    match = pattern.search(text)
    return float(match[1]) * UNITS[match[2]] if match else None


def _size(size: float) -> str:
    return f"{size / GB:,.1f} GB" if size >= GB / 10 else f"{size / 10**6:,.1f} MB"


def _free_main_memory() -> float | None:
    info = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.is_file() else None
    return float(match[1]) * 1024 if match else None


def _advice(make_job: Callable[[], Job | None], phase: str | None) -> str:
    """Setting to change, by the plan."""
    job = make_job()
    if job is None:
        return SEE_PLAN
    before = peaks(job)
    phase = phase if phase in before else max(before, key=lambda name: before[name].total)
    savings = best_savings(job, lambda one: peaks(one)[phase].total)
    if not savings:
        return f"shorten max_response_tokens or take a smaller model; {SEE_PLAN}"
    text = " or ".join(_describe(saving, before[phase], peaks(saving.job)[phase]) for saving in savings)
    return f"{text}; {SEE_PLAN}"


def _describe(saving: Saving, before: Moment, after: Moment) -> str:
    """`micro_batch=2 (activations 31.0 GB → 15.6 GB)`."""
    saved = {name: before.parts[name] - after.parts.get(name, 0) for name in before.parts}
    most = max(saved, key=lambda name: saved[name])
    effect = f"{most} {_size(before.parts[most])} → {_size(after.parts.get(most, 0))}"
    return f"{' '.join(saving.overrides)} ({effect})"
