"""Work on rows spread over processes, results in order."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import TypeVar

from prism_cli.errors import DataError

CHUNK = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(work: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """`work` of each item, in order, done in other processes; few items are held at a time.

    Args:
        work: Sent to other processes, so a named function.
        items: What it takes.
        processes: How many to start.

    Raises:
        DataError: a process was killed.
    """
    with _workers(processes) as pool:
        waiting = deque()
        for chunk in batches(items):
            waiting.append(pool.submit(_work_chunk, work, chunk))
            if len(waiting) > 3 * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of a few items each."""
    stream = iter(items)
    while batch := list(islice(stream, CHUNK)):
        yield batch


_stop: Event | None = None


def _work_chunk(work: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [work(item) for item in chunk if not (_stop and _stop.is_set())]


def _begin(stop: Event) -> None:
    global _stop
    _stop = stop


@contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start clean (a fork of one that holds threads may hang) and end within a row of being told."""
    context = get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(stop,))
    try:
        with _interrupts_held():
            for _ in range(processes):
                pool.submit(_work_chunk, str, [])  # each starts one
        yield pool
    except BrokenProcessPool:
        raise DataError("a process that checked rows was killed", "free memory, then run the command again") from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keeps Ctrl-C waiting; what is started meanwhile never gets it, from its first line on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
