"""Memory while a stage runs: measured beside the plan, and an error that says what to turn when it has run out."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import get_console

from prism_cli.assembly.run_folder import check_processes, lineage, open_stage, worked_in
from prism_cli.errors import PrismError
from prism_cli.planning.job import GB, Job
from prism_cli.planning.ladder import Change, cheaper
from prism_cli.planning.memory import GENERATION, JUDGE, UPDATE, WARM_UP, Moment, peaks
from prism_cli.runs.folder import Run

if TYPE_CHECKING:  # it imports torch
    from prism_cli.models import Policy

# What torch, its CPU allocator and vLLM say when there is none left.
SIGNS = ("out of memory", "can't allocate memory", "No available memory for the cache blocks", "Free memory on device")
ASKED = re.compile(r"(?:Tried|tried) to allocate ([\d.]+) (GiB|MiB|KiB|bytes)")
FREE = re.compile(r"of which ([\d.]+) (GiB|MiB|KiB|bytes) is free")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# A change that saves less than this share of a phase's memory is not worth naming.
WORTH = 0.1


def memory_watch(stage: str, recipe: Any, run: Run, policy: "Policy") -> list[Any]:
    """The callback that measures memory; none for models too small for it to tell anything.

    Args:
        stage: sft, align or rl.
        recipe: Its recipe.
        run: Keeps what was measured.
        policy: Loaded.
    """
    import torch

    from prism_cli.assembly.planned_job import running_job
    from prism_cli.models import SMALL
    from prism_cli.trainers.memory import MemoryWatch, measurable

    cuda = torch.cuda.is_available()
    if policy.model.num_parameters() < SMALL or not measurable():
        return []
    memory = float(torch.cuda.get_device_properties(0).total_memory) if cuda else float("inf")
    job = running_job(stage, recipe, policy, torch.accelerator.is_available(), memory)
    loaded = policy.model.num_parameters() * policy.model.dtype.itemsize
    if job is not None and job.judge is not None:
        loaded += 4 * job.judge.shape.weights
    planned = None if job is None else trained_peak(job)
    return [MemoryWatch(planned, loaded, get_console(), run.update)]


def trained_peak(job: Job) -> float:
    """Bytes of tensors that training will take at most; what comes before it, and holes between them, left out."""
    return max(
        moment.total - moment.parts.get("CUDA and holes", 0) - moment.parts.get("vLLM", 0)
        for phase, moment in peaks(job).items()
        if phase != WARM_UP
    )


@contextmanager
def training_run(stage: str, recipe: Any, fresh: bool, command: Sequence[str]) -> Iterator[Run]:
    """The frame of a stage that trains, on as many processes as its recipe says; see `run_folder.stage_run`.

    Raises:
        RecipeError: started on another number of processes than `launch` says.
        CheckpointError: see `open_run`.
        PrismError: out of memory, with advice.
    """
    launch = recipe.launch
    check_processes(stage, launch.processes, launch.nodes)
    run = open_stage(stage, recipe, lineage(recipe), fresh, command)
    run.update(launch={"processes": launch.world_size, "nodes": launch.nodes, "zero": launch.zero})
    with worked_in(run), fitting(stage, recipe):
        yield run


@contextmanager
def fitting(stage: str, recipe: Any) -> Iterator[None]:
    """Turns running out of memory into an error with advice.

    Raises:
        PrismError: where, how much was asked for, and which setting to turn.
    """
    try:
        yield
    except (RuntimeError, ValueError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(stage, recipe, error) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory has run out."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)


def out_of_memory(stage: str, recipe: Any, error: BaseException) -> PrismError:
    """The error with its phase and step, what was asked for, and what would make it fit."""
    phase, step = _where(error.__traceback__)
    text = str(error)
    asked, free = _bytes(ASKED, text), _bytes(FREE, text)
    if free is None and "GPU" not in text and "CUDA" not in text:
        free = _free_main_memory()
    amounts = [f"{_size(asked)} more asked for"] if asked else []
    amounts += [f"{_size(free)} free"] if free is not None else []
    when = "" if step is None else f" of step {step}"
    where = f"in the {phase}{when}" if phase else "while loading"
    message = f"out of memory {where}" + (f": {', '.join(amounts)}" if amounts else "")
    return PrismError(message, _advice(stage, recipe, phase))


def _where(traceback: TracebackType | None) -> tuple[str | None, int | None]:
    """The phase and the step that a traceback runs through."""
    phase = step = None
    while traceback is not None:
        frame = traceback.tb_frame
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if file.parts[-2:] == ("discriminator", "warmup.py"):
            phase = WARM_UP
        elif file.parts[-2:] == ("discriminator", "learner.py"):
            phase = phase or JUDGE
        elif name in ("generate", "_generate", "_generate_single_turn", "sample_responses"):
            phase = phase or GENERATION
        elif name in ("training_step", "compute_loss"):
            # Rollouts are made inside a training step too; what is deeper in the traceback knows better.
            step = _step(frame.f_locals.get("self")) or step
        traceback = traceback.tb_next
    return phase or (UPDATE if step is not None else None), step


def _step(trainer: Any) -> int | None:
    state = getattr(trainer, "state", None)
    return None if state is None else state.global_step + 1


def _bytes(pattern: re.Pattern[str], text: str) -> float | None:
    found = pattern.search(text)
    return float(found[1]) * UNITS[found[2]] if found else None


def _size(size: float) -> str:
    return f"{size / GB:,.1f} GB" if size >= GB / 10 else f"{size / 10**6:,.1f} MB"


def _free_main_memory() -> float | None:
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.is_file() else None
    return float(found[1]) * 1024 if found else None


def _advice(stage: str, recipe: Any, phase: str | None) -> str:
    """What to turn, by the plan."""
    import torch

    from prism_cli.assembly.planned_job import PLANNED, job_of, start_of
    from prism_cli.planning.job import Device

    plain = "see `prism plan` for what each setting takes"
    if not isinstance(recipe, PLANNED):
        return f"lower batch_size or max_response_tokens; {plain}"
    try:
        device = Device(torch.accelerator.is_available(), float("inf"))
        job = job_of(stage, recipe, device, start_of(recipe))
    except PrismError:
        return plain
    found = peaks(job)
    phase = phase if phase in found else max(found, key=lambda name: found[name].total)
    worth = [
        change
        for change in cheaper(job, lambda one: peaks(one)[phase].total)
        if peaks(change.job)[phase].total < (1 - WORTH) * found[phase].total
    ]
    if not worth:
        return f"shorten max_response_tokens or take a smaller model; {plain}"
    said = " or ".join(_told(change, found[phase], peaks(change.job)[phase]) for change in worth[:2])
    return f"{said}; `prism plan` tells all of it"


def _told(change: Change, before: Moment, after: Moment) -> str:
    """`micro_batch=2 (activations 31.0 → 15.6 GB)`."""
    saved = {name: before.parts[name] - after.parts.get(name, 0) for name in before.parts}
    most = max(saved, key=lambda name: saved[name])
    effect = f"{most} {_size(before.parts[most])} → {_size(after.parts.get(most, 0))}"
    return f"{' '.join(change.overrides)} ({effect})"
