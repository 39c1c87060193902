"""Savings: the three single settings that lower a stage's memory most, by the plan's own formula."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from prism_cli.launching.command import Launch
from prism_cli.planning.job import Adapters, Job
from prism_cli.planning.memory import peak

MOST = 3
# A change that saves less than this share is not named.
SMALLEST = 0.1
# GPUs of one node.
NODE = (2, 4, 8)
VLLM_SHARE = 0.3
RANK = 16
# ZeRO's stages with and without offload, the fastest first.
SHARDS: tuple[tuple[Literal[2, 3], bool], ...] = ((2, False), (3, False), (2, True), (3, True))


class Saving(NamedTuple):
    """A change of one setting.

    Attributes:
        overrides: `key=value`, to append to the command.
        job: The stage with it.
    """

    overrides: tuple[str, ...]
    job: Job


def best_savings(job: Job, size: Callable[[Job], float] = peak) -> list[Saving]:
    """The single changes that save most, the largest saving first.

    Of a setting with several values the first one with which the stage fits is taken, else the last: a smaller step
    costs less time.

    Args:
        job: The stage.
        size: Bytes to make small.
    """
    limit, now = job.device.memory, size(job)
    settings = (_rows(job), _discriminator_rows(job), _generators(job), _shards(job), _more_gpus(job), _adapters(job))
    changes = [_first_fit([value for value in values if size(value.job) < now], limit) for values in settings]
    best = sorted((change for change in changes if change is not None), key=lambda change: size(change.job))
    return [change for change in best if size(change.job) <= (1 - SMALLEST) * now][:MOST]


def _first_fit(values: list[Saving], limit: float) -> Saving | None:
    return next((value for value in values if peak(value.job) <= limit), values[-1] if values else None)


def _rows(job: Job) -> Iterator[Saving]:
    """Fewer rows a pass of the update; a step keeps its rows."""
    for rows in _halved(job.micro_batch) if job.stage != "warmup" else []:
        new = replace(job, micro_batch=rows, passes=job.micro_batch * job.passes // rows)
        if job.stage == "sft":
            yield Saving((f"batch_size={rows}", f"gradient_accumulation={new.passes}"), new)
        else:
            yield Saving((f"micro_batch={rows}",), new)


def _discriminator_rows(job: Job) -> Iterator[Saving]:
    if job.discriminator is None:
        return
    for rows in _halved(job.discriminator.micro_batch):
        new = replace(job, discriminator=replace(job.discriminator, micro_batch=rows))
        yield Saving((f"discriminator.micro_batch={rows}",), new)


def _generators(job: Job) -> Iterator[Saving]:
    """Rollouts of vLLM in place of transformers; the warm-up generates fewer at once."""
    generation = job.generation
    if generation is None or generation.vllm is not None:
        return
    if job.stage == "warmup":
        for count in _halved(generation.rollouts):
            yield Saving((f"batch_size={count}",), replace(job, generation=replace(generation, rollouts=count)))
    elif job.device.accelerator:
        yield Saving(("generation.type=vllm",), replace(job, generation=replace(generation, vllm=VLLM_SHARE)))


def _shards(job: Job) -> Iterator[Saving]:
    """States sharded over the processes there are, or held in main memory."""
    for zero, offload in SHARDS:
        launch = job.launch._replace(zero=zero, offload=offload)
        # One process shards nothing; it can only hold states elsewhere.
        if launch != job.launch and (offload or launch.world_size > 1):
            yield Saving(_overrides(job.launch, launch), _on(job, launch))


def _more_gpus(job: Job) -> Iterator[Saving]:
    """States sharded over more GPUs of a node."""
    for processes in NODE:
        if processes <= job.launch.processes or not _divides(job, processes):
            continue
        for zero in (2, 3):
            launch = job.launch._replace(processes=processes, zero=zero)
            yield Saving(_overrides(job.launch, launch), _on(job, launch))


def _adapters(job: Job) -> Iterator[Saving]:
    if job.adapters is None and job.stage != "warmup":
        yield Saving(("lora={}",), replace(job, adapters=Adapters(RANK)))


def _overrides(old: Launch, new: Launch) -> tuple[str, ...]:
    values = {"processes": new.processes, "zero": new.zero, "offload": str(new.offload).lower()}
    changed = [name for name in values if getattr(old, name) != getattr(new, name)]
    return tuple(f"launch.{name}={values[name]}" for name in changed)


def _divides(job: Job, processes: int) -> bool:
    """Whether a step can be cut into as many processes."""
    if job.generation is None or job.stage == "warmup":
        return True
    return job.micro_batch * job.passes * job.launch.world_size % (processes * job.launch.nodes) == 0


def _on(job: Job, launch: Launch) -> Job:
    """The same step on another number of processes."""
    if job.generation is None or job.stage == "warmup":
        return replace(job, launch=launch)  # SFT's rows are a device's
    rows = job.micro_batch * job.passes * job.launch.world_size // launch.world_size
    micro = next(n for n in range(min(rows, job.micro_batch), 0, -1) if rows % n == 0)
    rollouts = max(1, job.generation.rollouts * job.launch.world_size // launch.world_size)
    generation = replace(job.generation, rollouts=rollouts)
    return replace(job, launch=launch, micro_batch=micro, passes=rows // micro, generation=generation)


def _halved(count: int) -> list[int]:
    """The counts that halving gives while it divides, and 1."""
    counts = []
    while count > 1 and count % 2 == 0:
        count //= 2
        counts.append(count)
    return counts if count == 1 else [*counts, 1]
