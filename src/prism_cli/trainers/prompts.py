"""The prompts of each step. Their order is known ahead, so a teacher is asked about prompts before their turn."""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler

from prism_cli.errors import TeacherError

# Batches asked about beyond the one whose answers are waited for: an answer has as many full steps' time, as the data
# loader takes each batch one step before its turn.
AHEAD = 2


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch takes its rows, as `EpochSampler` does."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def first_prompts(count: int, batch_size: int, seed: int, batches: int) -> list[int]:
    """The rows that a `TeachableSampler` asks about first, if training is that many batches long."""
    return epoch_order(count, seed, 0)[: batch_size * min(1 + AHEAD, batches)]


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order that follows from the epoch alone.

    TRL's draws each epoch's order from one generator whose state no checkpoint keeps, so a run that continues in a
    later epoch would see the first one's order again.
    """

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)

    def order(self, epoch: int) -> list[int]:
        """The order of an epoch's rows, whichever one it is at."""
        return epoch_order(self.num_samples, self.seed or 0, epoch) if self.shuffle else list(range(self.num_samples))


class PromptCursor:
    """Takes prompts one after the other through the epochs' orders; where it stands is one number.

    Args:
        count: Rows.
        order: Epoch → the order of its rows.
        seen: Prompts taken since the start of training.
    """

    def __init__(self, count: int, order: Callable[[int], list[int]], seen: int = 0):
        self.count, self.order, self.seen = count, order, seen

    def take(self, wanted: int) -> list[int]:
        """The next row indices, over the epoch's end where it comes to that."""
        places = range(self.seen, self.seen + wanted)
        orders = {epoch: self.order(epoch) for epoch in {place // self.count for place in places}}
        self.seen = places.stop
        return [orders[place // self.count][place % self.count] for place in places]


class TeachableSampler(Sampler[int]):
    """EpochSampler that passes over prompts the teacher fails on; the next ones of the epoch's order move up.

    An epoch keeps its number of steps: where its order runs out it goes on with its earlier prompts. The same failures
    give the same prompts. Batches before the window are passed over and those past it are never used, so no
    question is asked about either.

    Args:
        sampler: Order, batch size and repetitions.
        ids: The rows' ids.
        prefetch: Starts asking about rows (dicts with an `id`), and returns at once.
        teachable: Whether the teacher has a usable answer to each row; waits for them.
        window: The first batch that is still to be generated for, and the one at which training ends, both counted from
            the start of training.
        failed: Ids of rows the teacher failed on; grows.
        ahead: Batches to ask about beyond the one that is waited for.
    """

    def __init__(
        self,
        sampler: EpochSampler,
        ids: Sequence[str],
        prefetch: Callable[[list[dict[str, Any]]], None],
        teachable: Callable[[list[dict[str, Any]]], list[bool]],
        window: Callable[[], tuple[int, int]],
        failed: set[str],
        ahead: int = AHEAD,
    ):
        self.sampler, self.ids, self.ahead = sampler, ids, ahead
        self.prefetch, self.teachable, self.window, self.failed = prefetch, teachable, window, failed
        self.batches = len(ids) // sampler.batch_size
        self._prefetched: set[int] = set()

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        """Row indices, as RepeatSampler repeats them.

        Raises:
            TeacherError: too few rows are teachable to fill a step; or the teacher's own.
            BudgetError: the teacher's.
        """
        first, stop = self.window()
        order, cursor = self.sampler.order(self.sampler.epoch), 0
        for number in range(self.sampler.epoch * self.batches, (self.sampler.epoch + 1) * self.batches):
            in_window = first <= number < stop
            if in_window:
                self._prefetch(number, order, cursor, stop)
            rows, cursor = self._take(order, cursor, self._teachable if in_window else self._not_failed)
            for _ in range(self.sampler.repeat_count):
                for row in rows:
                    yield from repeat(row, self.sampler.mini_repeat_count)

    def _take(self, order: list[int], cursor: int, usable: Callable[[list[int]], list[bool]]) -> tuple[list[int], int]:
        """The next usable rows from a place in the order on, at most once around it, and the place after them."""
        taken: list[int] = []
        place = cursor
        while missing := self.sampler.batch_size - len(taken):
            if place + missing > cursor + len(order):
                raise TeacherError(
                    f"the teacher failed on {len(self.failed)} of {len(order)} prompts; "
                    f"a step needs {self.sampler.batch_size}",
                    "look at the teacher's answers with `prism teacher log`, or give more prompts",
                )
            rows = [order[i % len(order)] for i in range(place, place + missing)]
            taken += [row for row, good in zip(rows, usable(rows), strict=True) if good]
            place += missing
        return taken, place

    def _prefetch(self, number: int, order: list[int], cursor: int, stop: int) -> None:
        """Asks about this batch and the coming ones, over the epoch's end, as far as failures are known."""
        wanted: list[int] = []
        for coming in range(number, min(number + 1 + self.ahead, stop)):
            if coming > number and coming % self.batches == 0:
                order, cursor = self.sampler.order(coming // self.batches), 0
            rows, cursor = self._take(order, cursor, self._not_failed)
            wanted += rows
        new = [row for row in dict.fromkeys(wanted) if row not in self._prefetched]
        self._prefetched.update(new)
        self.prefetch([{"id": self.ids[row]} for row in new])

    def _teachable(self, rows: list[int]) -> list[bool]:
        unknown = [row for row in rows if self.ids[row] not in self.failed]
        verdicts = self.teachable([{"id": self.ids[row]} for row in unknown])
        self.failed.update(self.ids[row] for row, good in zip(unknown, verdicts, strict=True) if not good)
        return self._not_failed(rows)

    def _not_failed(self, rows: list[int]) -> list[bool]:
        return [self.ids[row] not in self.failed for row in rows]
