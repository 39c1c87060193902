"""The smallest change of a recipe with which a stage fits into its devices' memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from prism_cli.planning.job import Adapters, Generation, Job, Launch
from prism_cli.planning.memory import peak

# GPUs of one node.
NODE = (1, 2, 4, 8)
VLLM_SHARE = 0.3
RANK = 16


@dataclass(frozen=True)
class Change:
    """A way to fit.

    Attributes:
        overrides: `key=value`, to append to the command.
        job: The stage with it.
    """

    overrides: tuple[str, ...]
    job: Job


class _Rung(NamedTuple):
    job: Job
    overrides: tuple[str, ...]


def smallest_fit(job: Job) -> Change | None:
    """The first change on the ladder that fits, or None where none does.

    The ladder: as it is; vLLM in place of transformers; fewer rows a pass, halved down to 1, of the update and of the
    judge; then ZeRO-2, ZeRO-3 and offload on as many processes as there are; then the same on 2, 4 and 8 GPUs; then all
    of it with LoRA.

    Args:
        job: The stage.
    """
    starts = [_Rung(job, ())]
    if job.adapters is None and job.stage != "warmup":
        starts.append(_Rung(replace(job, adapters=Adapters(RANK)), ("lora={}",)))
    for start in starts:
        for launched in _launches(start):
            for generated in _generators(launched):
                for rung in _rows(generated):
                    if peak(rung.job) <= job.device.memory:
                        return Change(rung.overrides, rung.job)
    return None


def _launches(rung: _Rung) -> Iterator[_Rung]:
    """As started, then sharded over as many processes, then over more."""
    launch = rung.job.launch
    for processes in [n for n in NODE if n >= launch.processes] or [launch.processes]:
        if not _divides(rung.job, processes):
            continue
        for zero, offload in _shards(launch, processes):
            changed = replace(launch, processes=processes, zero=zero, offload=offload)
            new = _with_launch(rung.job, changed)
            yield _Rung(new, (*rung.overrides, *_launch_overrides(launch, changed)))


def _shards(launch: Launch, processes: int) -> Iterator[tuple]:
    yield launch.zero, launch.offload
    world = processes * launch.nodes
    for zero, offload in ((2, False), (3, False), (2, True), (3, True)):
        # One process shards nothing; it can only put states elsewhere.
        if (zero, offload) == (launch.zero, launch.offload) or (world == 1 and not offload):
            continue
        yield zero, offload


def _launch_overrides(old: Launch, new: Launch) -> Iterator[str]:
    if new.processes != old.processes:
        yield f"launch.processes={new.processes}"
    if new.zero != old.zero:
        yield f"launch.zero={new.zero}"
    if new.offload != old.offload:
        yield f"launch.offload={str(new.offload).lower()}"


def _divides(job: Job, processes: int) -> bool:
    """Whether a step can be cut into as many processes."""
    if job.generation is None or job.stage == "warmup":
        return True
    return job.micro_batch * job.passes * job.launch.world % (processes * job.launch.nodes) == 0


def _with_launch(job: Job, launch: Launch) -> Job:
    """The same step on another number of processes."""
    if job.generation is None or job.stage == "warmup":
        return replace(job, launch=launch)  # SFT's rows are a device's
    rows = job.micro_batch * job.passes * job.launch.world // launch.world
    micro = _largest_divisor(rows, job.micro_batch)
    at_once = max(1, job.generation.rollouts * job.launch.world // launch.world)
    generation = replace(job.generation, rollouts=at_once)
    return replace(job, launch=launch, micro_batch=micro, passes=rows // micro, generation=generation)


def _largest_divisor(rows: int, most: int) -> int:
    return next(n for n in range(min(rows, most), 0, -1) if rows % n == 0)


def _generators(rung: _Rung) -> Iterator[_Rung]:
    yield rung
    asked = rung.job.generation
    if asked and asked.vllm is None and rung.job.device.accelerator:
        tried: list[tuple[str, Generation]] = [("generation.type=vllm", replace(asked, vllm=VLLM_SHARE))]
        if rung.job.stage == "warmup":
            tried = [(f"batch_size={count}", replace(asked, rollouts=count)) for count in _halved(asked.rollouts)]
        for override, new in tried:
            yield _Rung(replace(rung.job, generation=new), (*rung.overrides, override))


def _rows(rung: _Rung) -> Iterator[_Rung]:
    """As it is, then fewer rows a pass: the policy's and the judge's are halved on their own, largest first."""
    job = rung.job
    judge = [job.judge.micro_batch, *_halved(job.judge.micro_batch)] if job.judge else [0]
    policy = [job.micro_batch, *(_halved(job.micro_batch) if job.stage != "warmup" else [])]
    for rows in policy:
        for judged in judge:
            new, said = job, list(rung.overrides)
            if rows != job.micro_batch:
                new = _fewer_rows(new, rows)
                said += _row_overrides(new)
            if job.judge and judged != job.judge.micro_batch:
                new = replace(new, judge=replace(job.judge, micro_batch=judged))
                said.append(f"discriminator.micro_batch={judged}")
            yield _Rung(new, tuple(said))


def _fewer_rows(job: Job, rows: int) -> Job:
    """The same step in smaller passes."""
    return replace(job, micro_batch=rows, passes=job.micro_batch * job.passes // rows)


def _row_overrides(job: Job) -> list[str]:
    if job.stage == "sft":
        return [f"batch_size={job.micro_batch}", f"gradient_accumulation={job.passes}"]
    return [f"micro_batch={job.micro_batch}"]


def _halved(count: int) -> list[int]:
    """What halving gives, down to 1, while it divides."""
    found = []
    while count > 1 and count % 2 == 0:
        count //= 2
        found.append(count)
    return found if count == 1 else [*found, 1]


def cheaper(job: Job, saved: Callable[[Job], float]) -> list[Change]:
    """Single changes of a job, those that save most first: for an error's hint.

    Args:
        job: As it ran out of memory.
        saved: What to make small.
    """
    now = saved(job)
    found = [Change(rung.overrides, rung.job) for rung in _single(job)]
    return sorted((one for one in found if saved(one.job) < now), key=lambda one: saved(one.job))


def _single(job: Job) -> Iterator[_Rung]:
    start = _Rung(job, ())
    for rows in _halved(job.micro_batch)[:1] if job.stage != "warmup" else []:
        new = _fewer_rows(job, rows)
        yield _Rung(new, tuple(_row_overrides(new)))
    for rows in _halved(job.judge.micro_batch)[:1] if job.judge else []:
        new = replace(job, judge=replace(job.judge, micro_batch=rows)) if job.judge else job
        yield _Rung(new, (f"discriminator.micro_batch={rows}",))
    yield from list(_generators(start))[1:2]
    for zero, offload in _shards(job.launch, job.launch.processes):
        changed = replace(job.launch, zero=zero, offload=offload)
        if changed != job.launch:
            yield _Rung(_with_launch(job, changed), tuple(_launch_overrides(job.launch, changed)))
