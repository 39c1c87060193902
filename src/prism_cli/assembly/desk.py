"""Asks a teacher about rows by their id, in order and ahead of need, and counts what it fails on."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prism_cli import processes
from prism_cli.assembly.asking import Asking
from prism_cli.assembly.teacher_plan import Outlook
from prism_cli.data.images import image_bytes
from prism_cli.endpoint.budget import Budget
from prism_cli.endpoint.estimate import NOTHING_TO_ASK, TeacherPlan
from prism_cli.endpoint.requests import data_url
from prism_cli.errors import DataError, TeacherError
from prism_cli.teacher.teachers import Failed, TeacherRequest
from prism_cli.teacher.teachers import Teacher as TeacherProtocol

if TYPE_CHECKING:
    from datasets import Dataset

# So many rows are under way at a time, and their pictures in memory, however many are asked about.
WINDOW, AT_ONCE = 512, 16
# From here on a share of failures may end a stage early, if it lies so many standard deviations above what is allowed;
# when the stage has asked all it wanted, the share itself decides.
ENOUGH_ASKED, CLEARLY = 20, 3


class TeacherAnswers:
    """Asks a teacher about rows of one data set, with the images' bytes as they were read.

    Where several processes train, each has a desk, and all call `answers` and `teachable` together: the main process
    asks, the others get the texts.

    Args:
        teacher: Whom to ask; other processes than the main one never do.
        asking: How.
        rows: The data sets the rows are from, by id.
        max_failed: Largest share of rows the teacher may fail on.
        outlook: Tells what would be asked; None where nothing ever is.
        budget: What was spent; None where nothing ever is.
        keep_usage: Called after each batch of answers.

    Attributes:
        grammar: The parts the teacher writes.
        taught: Their names.
        failures: Reason → rows the teacher failed on.

    Raises:
        DataError: two different rows have one id, so one would get the other's answer.
    """

    def __init__(
        self,
        teacher: TeacherProtocol,
        asking: Asking,
        *rows: "Dataset",
        max_failed: float = 0.0,
        outlook: Outlook | None = None,
        budget: Budget | None = None,
        keep_usage: Callable[[], None] = lambda: None,
    ):
        self.teacher = teacher
        self.grammar = asking.grammar
        self.taught = tuple(asking.grammar.parts)
        self.failures: Counter[str] = Counter()
        self._asking, self._max_failed, self._outlook = asking, max_failed, outlook
        self._budget, self._keep_usage = budget, keep_usage
        self._sources = _by_id(rows)
        self._ready: dict[tuple[str, int], str | None] = {}
        self._failed: dict[tuple[str, int], str] = {}
        self._asked: set[tuple[str, int]] = set()
        self._kept = 0

    # Asking --------------------------------------------------------------------------------------------------------

    def prefetch(self, rows: Sequence[dict], sample: int = 0) -> None:
        """Starts asking about rows, and returns at once."""
        if not processes.is_main():
            return
        asked = [(row["id"], sample) for row in rows]
        self.teacher.prefetch([self.request(*one) for one in asked if one not in self._ready])

    def answers(
        self, rows: Sequence[dict], sample: int = 0, on_progress: Callable[[int], None] = lambda done: None
    ) -> list[str | None]:
        """The teacher's texts, in order; None for a row it failed on. Each process may ask about rows of its own.

        Args:
            rows: By their `id`.
            sample: Which of several answers to one question.
            on_progress: Told how many rows are done.

        Raises:
            TeacherError: it fails on more rows than allowed, or for good.
            BudgetError: a cap was reached.
        """
        if not processes.together():
            return self._answers(rows, sample, on_progress)
        everyone = processes.gather([row["id"] for row in rows])
        ids = list(dict.fromkeys(id for one in everyone for id in one))
        texts = processes.from_main(lambda: self._answers([{"id": id} for id in ids], sample, on_progress))
        known = dict(zip(ids, texts, strict=True))
        return [known[row["id"]] for row in rows]

    def _answers(self, rows: Sequence[dict], sample: int, on_progress: Callable[[int], None]) -> list[str | None]:
        found: list[str | None] = []
        self.prefetch(rows[:WINDOW], sample)
        for start in range(0, len(rows), AT_ONCE):
            self.prefetch(rows[start + WINDOW : start + WINDOW + AT_ONCE], sample)
            asked = [(row["id"], sample) for row in rows[start : start + AT_ONCE]]
            self._fetch(asked)
            found += [self._ready[one] for one in asked]
            for one in asked:
                self._ready.pop(one, None)
            on_progress(len(found))
        return found

    def teachable(self, rows: Sequence[dict]) -> list[bool]:
        """Which rows the teacher has an answer to; waits for them, and `answers` then has them at once.

        All processes ask about the same rows.
        """
        return processes.from_main(lambda: self._teachable(rows))

    def _teachable(self, rows: Sequence[dict]) -> list[bool]:
        asked = [(row["id"], 0) for row in rows]
        self._fetch(asked)
        return [self._ready[one] is not None for one in asked]

    def reason(self, id: str, sample: int = 0) -> str | None:
        """Why the teacher failed on a row; None where it didn't."""
        return self._failed.get((id, sample))

    def _fetch(self, asked: Sequence[tuple[str, int]]) -> None:
        missing = [one for one in dict.fromkeys(asked) if one not in self._ready]
        if not missing:
            return
        found = self.teacher.answers([self.request(*one) for one in missing])
        self._keep_usage()
        for one, answer in zip(missing, found, strict=True):
            failed = isinstance(answer, Failed)
            self._ready[one] = None if failed else answer.text
            if one in self._asked:
                continue
            self._asked.add(one)
            if failed:
                self._failed[one] = answer.reason
                self.failures[answer.reason] += 1
            else:
                self._kept += answer.cached
        if len(self._asked) >= ENOUGH_ASKED:
            self.refuse_failures(CLEARLY)

    def refuse_failures(self, deviations: float = 0) -> None:
        """Ends a stage whose teacher failed on more rows than allowed.

        Args:
            deviations: How many standard deviations above the allowed share, so that chance among the first rows ends
                nothing.

        Raises:
            TeacherError: naming the reasons and the first rows.
        """
        share, asked = self._max_failed, len(self._asked)
        if len(self._failed) <= share * asked + deviations * math.sqrt(share * (1 - share) * asked):
            return
        some = ", ".join(f"{id} ({reason})" for (id, _), reason in list(self._failed.items())[:3])
        raise TeacherError(
            f"the teacher failed on {len(self._failed)} of {len(self._asked)} rows ({self._reasons()}), more than the "
            f"{self._max_failed:.0%} that teacher.max_failed allows; the first: {some}",
            "drop these rows, raise teacher.max_tokens if answers are cut off, ask another teacher, or raise "
            "teacher.max_failed",
        )

    # Telling -------------------------------------------------------------------------------------------------------

    def plan(self, rows: Sequence[dict], samples: int = 1, at_most: int | None = None) -> TeacherPlan:
        """What asking about rows would take, by what is kept; asks nothing.

        Args:
            rows: By their `id`.
            samples: Answers wanted a row.
            at_most: How many questions will be put, if fewer.
        """
        if self._outlook is None:
            return NOTHING_TO_ASK
        asked = (self.request(row["id"], sample) for row in rows for sample in range(samples))
        return self._outlook.plan(asked, at_most)

    def account(self) -> str | None:
        """What was asked of whom and what came of it, in one line; None where there was no one to ask."""
        if self._budget is None or not self._asked:
            return None
        answered = len(self._asked) - len(self._failed)
        failed = f", {len(self._failed)} rows failed ({self._reasons()})" if self._failed else ""
        usd = self._budget.summary()["usd"]
        cost = "" if usd is None else f", ${usd:,.2f}"
        return f"teacher: {answered:,} answers, {self._kept:,} from the store{failed}{cost}"

    def image_url(self, id: str) -> str | None:
        """A row's first picture as a data URL, or None."""
        images = self._row(id)["images"]
        return data_url(image_bytes(images[0])) if images else None

    def _reasons(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.failures.most_common())

    def request(self, id: str, sample: int = 0) -> TeacherRequest:
        """What is asked about a row."""
        return self._asking.request(self._row(id), sample)

    def _row(self, id: str) -> dict[str, Any]:
        data, index = self._sources[id]
        return data[index]


def _by_id(sources: Sequence["Dataset"]) -> dict[str, tuple["Dataset", int]]:
    from prism_cli.data.rows import undecoded  # here: datasets costs a second to import

    found: dict[str, tuple[Dataset, int]] = {}
    for data in sources:
        raw = undecoded(data)
        for index, id in enumerate(data["id"]):
            if id in found and found[id][0][found[id][1]] != raw[index]:
                raise DataError(f"two rows have the id {id}, one in each data set", "give each row an `id` of its own")
            found[id] = (raw, index)
    return found
