"""Answers in bulk: to every row, several a row, asked one by one or through batches; what is here when it stops too."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prism_cli.endpoint.batches.client import BatchAsker
from prism_cli.endpoint.kept import KeptAnswers
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.errors import BudgetError, TeacherError
from prism_cli.progress import progress, say
from prism_cli.teacher.answers import TeacherAnswers
from prism_cli.teacher.sources import KeptSource

if TYPE_CHECKING:
    from datasets import Dataset

# Rows are answered in small chunks, so that the bar moves, while so many questions are put ahead.
CHUNK, AHEAD = 16, 256
# A teacher that failed on so many questions and answered none is asked no more.
MIN_FAILED_TO_STOP = 100
Stopped = BudgetError | TeacherError | KeyboardInterrupt


class Answer(NamedTuple):
    """The teacher's answer to a row.

    Attributes:
        row: The row's id.
        sample: Which of several answers.
        text: The answer, or "" where there is none.
        problem: Why there is none, as `kind: details`, or None.
    """

    row: str
    sample: int
    text: str
    problem: str | None

    @property
    def row_id(self) -> str:
        """Id of the answer's own row in a collection."""
        return self.row if self.sample == 0 else f"{self.row}#{self.sample}"


class BulkAnswers(Protocol):
    """Answers by row.

    Attributes:
        stopped: The cap or failure that ended it before all rows were asked about, or None.
    """

    stopped: Stopped | None

    def of(self, rows: "Dataset") -> Iterator[tuple[dict[str, Any], list[Answer]]]:
        """Each row with its answers, in order; once stopped, what is kept all the same."""
        ...


class DirectAnswers:
    """Answers asked one by one.

    Args:
        answers: The teacher's, by row.
        kept: Those in the store.
        samples: Answers a row.
        stops_when_useless: Whether it ends once a teacher has failed on all of many questions.
    """

    def __init__(self, answers: TeacherAnswers, kept: KeptAnswers, samples: int, stops_when_useless: bool = True):
        self._answers, self._store, self._samples = answers, kept, samples
        self._stops_when_useless = stops_when_useless
        self._questions = self._failed = 0
        self.stopped: Stopped | None = None

    def of(self, rows: "Dataset") -> Iterator[tuple[dict[str, Any], list[Answer]]]:
        """See `BulkAnswers`."""
        ids = [{"id": id} for id in rows["id"]]
        ahead = max(CHUNK, AHEAD // self._samples)
        with progress("collecting", len(ids) * self._samples) as on_progress:
            self._prefetch(ids[:ahead])
            for start in range(0, len(ids), CHUNK):
                if self.stopped is None:
                    self._prefetch(ids[start + ahead : start + ahead + CHUNK])
                answered = self._chunk(ids[start : start + CHUNK])
                on_progress(min(start + CHUNK, len(ids)) * self._samples)
                for index, given in enumerate(answered):
                    if given:
                        yield rows[start + index], given
                if isinstance(self.stopped, KeyboardInterrupt):
                    return
                self._refuse_useless(answered)

    def _chunk(self, chunk: Sequence[dict[str, str]]) -> list[list[Answer]]:
        """The answers of some rows; once stopped, those that came all the same."""
        texts = []
        for sample in range(self._samples):
            # At a cap the calls under way are waited for; a teacher that failed, or Ctrl-C, ends it at once.
            if isinstance(self.stopped, TeacherError | KeyboardInterrupt):
                break
            try:
                texts.append(self._answers.answers(chunk, sample))
            except (BudgetError, TeacherError) as error:
                self.stopped = self.stopped or error
            except KeyboardInterrupt as interrupt:
                self.stopped = interrupt
        if self.stopped is not None:
            return [self._kept(row["id"]) for row in chunk]
        return [
            [self._answer(row["id"], *one) for one in enumerate(given)]
            for row, given in zip(chunk, zip(*texts, strict=True), strict=True)
        ]

    def _refuse_useless(self, answered: Sequence[Sequence[Answer]]) -> None:
        problems = [answer.problem is not None for given in answered for answer in given]
        self._questions, self._failed = self._questions + len(problems), self._failed + sum(problems)
        if self._stops_when_useless and self.stopped is None and self._questions == self._failed >= MIN_FAILED_TO_STOP:
            self.stopped = useless(self._questions, self._answers)

    def _kept(self, id: str) -> list[Answer]:
        kept = [self._store.kept(self._answers.request(id, sample)) for sample in range(self._samples)]
        return [Answer(id, sample, answer.text, None) for sample, answer in enumerate(kept) if answer is not None]

    def _prefetch(self, rows: Sequence[dict[str, str]]) -> None:
        for sample in range(self._samples):
            self._answers.prefetch(rows, sample)

    def _answer(self, id: str, sample: int, text: str | None) -> Answer:
        return Answer(id, sample, text or "", self._answers.reason(id, sample) if text is None else None)


class BatchAnswers:
    """Answers asked in batches, then read from the store.

    Args:
        answers: The teacher's, by row; they come from the store from then on.
        kept: Those in the store.
        asker: Submits batches and collects them; closed once all is asked.
        samples: Answers a row.
    """

    def __init__(self, answers: TeacherAnswers, kept: KeptAnswers, asker: BatchAsker, samples: int):
        self._answers, self._store, self._asker, self._samples = answers, kept, asker, samples
        answers.source = KeptSource(kept, asker.reason, asker.was_answered_now)
        self.stopped: Stopped | None = None

    def of(self, rows: "Dataset") -> Iterator[tuple[dict[str, Any], list[Answer]]]:
        """See `BulkAnswers`."""
        ids = rows["id"]
        with closing(self._asker):
            self._ask(ids)
        if self.stopped is not None:
            rows = rows.select([index for index, id in enumerate(ids) if all(map(self._asker.was_asked, self._of(id)))])
        yield from DirectAnswers(self._answers, self._store, self._samples, stops_when_useless=False).of(rows)

    def _ask(self, ids: Sequence[str]) -> None:
        requests = lambda: (request for id in ids for request in self._of(id))  # noqa: E731
        try:
            _wait(self._asker, lambda on_progress: self._asker.run(requests, on_progress))
        except (BudgetError, TeacherError) as error:
            self.stopped = error

    def _of(self, id: str) -> Iterator[EndpointRequest]:
        return (self._answers.request(id, sample) for sample in range(self._samples))


def collect_under_way(asker: BatchAsker) -> None:
    """Brings in the batches that earlier starts submitted: they are paid for, whoever asks the rest.

    Args:
        asker: Knows them; closed in the end.

    Raises:
        TeacherError: they can't be had.
    """
    with closing(asker):
        _wait(asker, asker.collect)


def useless(questions: int, answers: TeacherAnswers) -> TeacherError:
    """The error over a teacher without one usable answer."""
    kinds: Counter[str] = Counter()
    for reason, count in answers.failures.items():
        kinds[reason.partition(":")[0]] += count
    reasons = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return TeacherError(
        f"{answers.source.name} gave no usable answer to any of {questions} questions ({reasons})",
        "see what it writes (prism teacher log); raise {max_tokens} if answers are cut off, or ask another",
        ("max_tokens",),
    )


def _wait(asker: BatchAsker, work: Callable[[Callable[[int, int], None]], None]) -> None:
    """Works with batches under a progress bar; names what goes on at the endpoint when it is interrupted."""
    with progress("waiting for batches", 0) as on_progress:
        try:
            work(on_progress)
        except KeyboardInterrupt:
            if waiting := ", ".join(asker.waiting):
                say(f"{waiting}: under way at the endpoint, and collected by the next start")
            raise
