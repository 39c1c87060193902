"""The teacher's answers by row: in order, asked for ahead of need, failures counted."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prism_cli import processes
from prism_cli.endpoint.pictures import data_url, image_bytes
from prism_cli.errors import TeacherError
from prism_cli.teacher.prompting import Prompting
from prism_cli.teacher.sources import AnswerSource, Failed, TeacherRequest

# Rows that are under way at a time, and their pictures in memory, however many are wanted; and rows answered at a time.
WINDOW, CHUNK = 512, 16
# From so many rows on a share of failures may end a stage early, if it lies so many standard deviations above what is
# allowed; when the stage has all it wanted, the share itself decides.
MIN_ROWS_TO_REFUSE, DEVIATIONS_TO_REFUSE = 20, 3


class TeacherAnswers:
    """A teacher's answers to rows, by their id.

    Where several processes train, each has one, and all call `answers` and `teachable` together: the main process asks,
    the others get the texts.

    Args:
        source: Where answers come from; other processes than the main one never ask it.
        prompting: How rows are put to it.
        row_of: The row of an id, its pictures as they were read.
        max_failed: Largest share of rows the teacher may fail on.
        on_answers: Called after each chunk of answers.

    Attributes:
        grammar: The parts the teacher writes.
        taught: Their names.
        failures: Reason → rows the teacher failed on.
    """

    def __init__(
        self,
        source: AnswerSource,
        prompting: Prompting,
        row_of: Callable[[str], Mapping[str, Any]],
        max_failed: float = 0.0,
        on_answers: Callable[[], None] = lambda: None,
    ):
        self.source = source
        self.grammar = prompting.grammar
        self.taught = tuple(prompting.grammar.parts)
        self.failures: Counter[str] = Counter()
        self._prompting, self._row_of = prompting, row_of
        self._max_failed, self._on_answers = max_failed, on_answers
        # By row id and sample: texts that are here, reasons of failures, and all that were counted.
        self._ready: dict[tuple[str, int], str | None] = {}
        self._failed: dict[tuple[str, int], str] = {}
        self._counted: set[tuple[str, int]] = set()
        self._cached = 0

    def request(self, id: str, sample: int = 0) -> TeacherRequest:
        """The request for a row."""
        return self._prompting.request(self._row_of(id), sample)

    def problem(self, text: str) -> str | None:
        """Mistake in an answer's form, or None."""
        return self._prompting.problem(text)

    def prefetch(self, rows: Sequence[Mapping[str, Any]], sample: int = 0) -> None:
        """Starts asking about rows, and returns at once."""
        if not processes.is_main():
            return
        wanted = [(row["id"], sample) for row in rows]
        self.source.prefetch([self.request(*one) for one in wanted if one not in self._ready])

    def answers(
        self,
        rows: Sequence[Mapping[str, Any]],
        sample: int = 0,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> list[str | None]:
        """The teacher's texts, in order; None for a row it failed on. Each process may ask about rows of its own.

        Args:
            rows: By their `id`.
            sample: Which of several answers to one question.
            on_progress: Called with the number of rows that are done.

        Raises:
            TeacherError: it fails on more rows than allowed, or for good.
            BudgetError: a cap was reached.
        """
        own = [row["id"] for row in rows]
        if not processes.together():
            return self._answers(own, sample, on_progress)
        ids = list(dict.fromkeys(id for of_process in processes.gather(own) for id in of_process))
        texts = processes.from_main(lambda: self._answers(ids, sample, on_progress))
        known = dict(zip(ids, texts, strict=True))
        return [known[id] for id in own]

    def teachable(self, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Flags of the rows that the teacher has an answer to; waits for them, and `answers` then has them at once.

        All processes ask about the same rows.
        """
        return processes.from_main(lambda: self._teachable([(row["id"], 0) for row in rows]))

    def reason(self, id: str, sample: int = 0) -> str | None:
        """Why the teacher failed on a row; None where it didn't."""
        return self._failed.get((id, sample))

    def refuse_failures(self, deviations: float = 0) -> None:
        """Ends a stage whose teacher failed on more rows than allowed.

        Args:
            deviations: How many standard deviations above the allowed share, so that chance among the first rows ends
                nothing.

        Raises:
            TeacherError: naming the reasons and the first rows.
        """
        share, rows, failed = self._max_failed, len(self._counted), len(self._failed)
        if failed <= share * rows + deviations * math.sqrt(share * (1 - share) * rows):
            return
        first = ", ".join(f"{id} ({reason})" for (id, _), reason in list(self._failed.items())[:3])
        raise TeacherError(
            f"the teacher failed on {failed} of {rows} rows ({self._reasons()}), more than max_failed allows "
            f"({share:.0%}); the first: {first}",
            "drop these rows, raise {max_tokens} if answers are cut off, ask another teacher, or raise {max_failed}",
            ("max_tokens", "max_failed"),
        )

    def account(self, usd: float | None) -> str | None:
        """The number of answers and of failures, in one line; None where nothing was asked.

        Args:
            usd: Dollars spent so far, or None where no price is known.
        """
        if not self._counted:
            return None
        answered = len(self._counted) - len(self._failed)
        failed = f", {len(self._failed)} rows failed ({self._reasons()})" if self._failed else ""
        cost = f", ${usd:,.2f}" if usd else ""
        return f"teacher: {answered:,} answers, {self._cached:,} from the store{failed}{cost}"

    def image_url(self, id: str) -> str | None:
        """A row's first picture as a data URL, or None."""
        images = self._row_of(id)["images"]
        return data_url(image_bytes(images[0])) if images else None

    def _answers(self, ids: Sequence[str], sample: int, on_progress: Callable[[int], None]) -> list[str | None]:
        texts: list[str | None] = []
        rows = [{"id": id} for id in ids]
        self.prefetch(rows[:WINDOW], sample)
        for start in range(0, len(rows), CHUNK):
            self.prefetch(rows[start + WINDOW : start + WINDOW + CHUNK], sample)
            wanted = [(id, sample) for id in ids[start : start + CHUNK]]
            self._fetch(wanted)
            texts += [self._ready[one] for one in wanted]
            for one in wanted:
                self._ready.pop(one, None)
            on_progress(len(texts))
        return texts

    def _teachable(self, wanted: Sequence[tuple[str, int]]) -> list[bool]:
        self._fetch(wanted)
        return [self._ready[one] is not None for one in wanted]

    def _fetch(self, wanted: Sequence[tuple[str, int]]) -> None:
        missing = [one for one in dict.fromkeys(wanted) if one not in self._ready]
        if not missing:
            return
        answers = self.source.answers([self.request(*one) for one in missing])
        self._on_answers()
        for one, answer in zip(missing, answers, strict=True):
            failed = isinstance(answer, Failed)
            self._ready[one] = None if failed else answer.text
            if one in self._counted:
                continue
            self._counted.add(one)
            if failed:
                self._failed[one] = answer.reason
                self.failures[answer.reason] += 1
            else:
                self._cached += answer.cached
        if len(self._counted) >= MIN_ROWS_TO_REFUSE:
            self.refuse_failures(DEVIATIONS_TO_REFUSE)

    def _reasons(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.failures.most_common())
