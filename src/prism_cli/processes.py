"""Distributed helpers: rank, world size, barriers, and plain values between processes.

A launcher starts them with RANK and WORLD_SIZE (torchrun, accelerate). Plain values travel over a gloo group of their
own, on any device: the tensors' collectives may give up after minutes, while the teacher's answers take hours.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from prism_cli.errors import PrismError, RecipeError

T = TypeVar("T")

# How long a process waits in a collective for the others. Where they fall out of step for longer (generating, scoring,
# saving), it waits in `barrier` before.
COLLECTIVE = timedelta(hours=2)
# How long others wait for what the main process alone does, such as asking the teacher; a dead one is noticed at once.
MAIN_AT_WORK = timedelta(days=7)

# Once the processes are connected: the group that plain values travel over, and what all can read and write.
_plain: Any = None
_store: Any = None
# What happens in `from_main` and `main_first` is done by one process, whatever it calls.
_alone = False


def rank() -> int:
    """This process's number, 0 on one process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that train together, over all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its node, which is also its device's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes, prints, and asks the teacher."""
    return rank() == 0


def launched() -> bool:
    """Whether a launcher started this process, be it the only one."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start() -> None:
    """Connects the processes, once, and lets the main one alone print; without effect where no launcher started it."""
    global _plain, _store
    if not launched() or _plain is not None:
        return
    import rich
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if not is_main():
        rich.reconfigure(quiet=True)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank())
    else:
        # Else accelerate calls the device cpu:0, which no checkpoint can be loaded on.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    store, number, count = next(rendezvous("env://", timeout=COLLECTIVE))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    own = distributed.distributed_c10d.PrefixStore("collectives", store)
    distributed.init_process_group(backend, store=own, rank=number, world_size=count, timeout=COLLECTIVE)
    _store = distributed.distributed_c10d.PrefixStore("prism", store)
    _plain = distributed.new_group(backend="gloo", timeout=MAIN_AT_WORK)


# DeepSpeed's settings that sum gradients of bfloat16 passes over passes and processes in float32: in bfloat16 a sum of
# dozens of passes loses what each one adds.
FLOAT32_GRADIENTS = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}


def refuse_without_deepspeed() -> None:
    """Raises what to install where `launch.zero` can't be had.

    Raises:
        RecipeError: DeepSpeed is not installed.
    """
    if find_spec("deepspeed") is None:
        raise RecipeError(
            "launch.zero: DeepSpeed is not installed", "pip install 'prism-cli[deepspeed]', or leave launch.zero out"
        )


def deepspeed() -> Any:
    """The module, ready to shard.

    Raises:
        RecipeError: it is not installed.
    """
    refuse_without_deepspeed()
    # What it compiles lies apart from other programs': one of them killed while compiling leaves a lock behind.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prism" / "torch_extensions"
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache))
    import deepspeed

    # A faster sum over the processes of one CPU machine, which would be compiled first, for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def barrier() -> None:
    """Waits until all processes are here, without end unless one of them is gone."""
    gather(None)


def together() -> bool:
    """Whether others take part in what is done here."""
    return world_size() > 1 and not _alone


def gather(value: T) -> list[T]:
    """Every process's value, by rank, on all of them."""
    if not together():
        return [value]
    from torch import distributed

    start()
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value, group=_plain)
    return values


def from_main(make: Callable[[], T]) -> T:
    """The value of `make` on all processes; it is called on the main one alone, and in it nobody is waited for.

    Raises:
        PrismError: raised by `make`, on all processes.
    """
    if not together():
        return make()
    if not is_main():
        value, error = _broadcast(None)
        if error is not None:
            raise error
        return value
    try:
        with _by_itself():
            value = make()
    except BaseException as error:
        # The others wait for this value: let them go too, whatever happened.
        failure = error if isinstance(error, PrismError) else PrismError("the main process failed")
        _broadcast((None, failure))
        raise
    return _broadcast((value, None))[0]


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through this block before the others enter it: it makes a file, they find it.

    Raises:
        PrismError: the main process failed in it.
    """
    if not together():
        yield
        return
    if not is_main():
        from_main(lambda: None)
        with _by_itself():
            yield
        return
    failed: PrismError | None = PrismError("the main process failed")
    try:
        with _by_itself():
            yield
        failed = None
    except PrismError as error:
        failed = error
        raise
    finally:
        _broadcast((None, failed))


@contextmanager
def _by_itself() -> Iterator[None]:
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def tells_of_failure() -> bool:
    """Whether this process is the first to fail, so that it is the one to say why."""
    if _store is None:
        return is_main()
    try:
        return _store.add("failed", 1) == 1
    except RuntimeError:
        return False  # the store went with the process that failed first


@contextmanager
def failing_together() -> Iterator[None]:
    """Within this block the end of another process is reported as such, not as a broken connection.

    Raises:
        PrismError: another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not any(word in str(error) for word in _LOST):
            raise
        raise PrismError(
            "another training process ended without a word: it was killed, or ran out of memory",
            "run the same command again to continue from the last checkpoint",
        ) from error


# What gloo and NCCL say of it.
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "NCCL communicator was aborted")


def _broadcast(value: Any) -> Any:
    from torch import distributed

    start()
    box = [value]
    distributed.broadcast_object_list(box, src=0, group=_plain)
    return box[0]
