"""Answers to every row as they come, asked one by one or in batches; the same to whoever collects them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prism_cli.assembly.endpoint import at_batch_price, price_of
from prism_cli.assembly.teacher import TeacherAnswers
from prism_cli.endpoint.batch import BatchAsker
from prism_cli.endpoint.batch_terms import Terms
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.errors import BudgetError, TeacherError
from prism_cli.progress import progress, say
from prism_cli.recipes.stages import CollectRecipe
from prism_cli.recipes.teachers import OpenAITeacher
from prism_cli.teacher.batch_teacher import BatchTeacher
from prism_cli.teacher.teachers import EndpointTeacher

if TYPE_CHECKING:
    from datasets import Dataset

# Answers are taken in small lots, so that the bar moves, while so many questions are put ahead.
LOT, AHEAD = 16, 256
# A teacher that failed on so many questions and on no other is asked no more.
ENOUGH_FAILED = 100
Stopped = BudgetError | TeacherError | KeyboardInterrupt


class Answer(NamedTuple):
    """What a row got.

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


class Answers(Protocol):
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
        desk: The teacher's.
        samples: Answers a row.
    """

    def __init__(self, desk: TeacherAnswers, samples: int):
        assert isinstance(desk.teacher, EndpointTeacher | BatchTeacher), "check refuses teachers that can't be asked"
        self._desk, self._samples, self._client = desk, samples, desk.teacher.client
        self._asking = isinstance(desk.teacher, EndpointTeacher)
        self._asked = self._failed = 0
        self.stopped: Stopped | None = None

    def of(self, rows: "Dataset") -> Iterator[tuple[dict[str, Any], list[Answer]]]:
        """See `Answers`."""
        ids = [{"id": id} for id in rows["id"]]
        ahead = max(LOT, AHEAD // self._samples)
        with progress("collecting", len(ids) * self._samples) as on_progress:
            self._prefetch(ids[:ahead])
            for start in range(0, len(ids), LOT):
                if self.stopped is None:
                    self._prefetch(ids[start + ahead : start + ahead + LOT])
                answered = self._lot(ids[start : start + LOT])
                on_progress(min(start + LOT, len(ids)) * self._samples)
                for index, given in enumerate(answered):
                    if given:
                        yield rows[start + index], given
                if isinstance(self.stopped, KeyboardInterrupt):
                    return
                self._refuse_useless(answered)

    def _lot(self, lot: Sequence[dict[str, str]]) -> list[list[Answer]]:
        """The answers of some rows; once stopped, those that came all the same."""
        texts = []
        for sample in range(self._samples):
            # At a cap the calls under way are waited for; a teacher that failed, or Ctrl-C, ends it at once.
            if isinstance(self.stopped, TeacherError | KeyboardInterrupt):
                break
            try:
                texts.append(self._desk.answers(lot, sample))
            except (BudgetError, TeacherError) as error:
                self.stopped = self.stopped or error
            except KeyboardInterrupt as interrupt:
                self.stopped = interrupt
        if self.stopped is not None:
            return [self._kept(row["id"]) for row in lot]
        return [
            [self._answer(row["id"], *one) for one in enumerate(given)]
            for row, given in zip(lot, zip(*texts, strict=True), strict=True)
        ]

    def _refuse_useless(self, answered: Sequence[Sequence[Answer]]) -> None:
        problems = [answer.problem is not None for given in answered for answer in given]
        self._asked, self._failed = self._asked + len(problems), self._failed + sum(problems)
        if self._asking and self.stopped is None and self._asked == self._failed >= ENOUGH_FAILED:
            self.stopped = useless(self._asked, self._desk)

    def _kept(self, id: str) -> list[Answer]:
        kept = [self._client.kept(self._desk.request(id, sample)) for sample in range(self._samples)]
        return [Answer(id, sample, answer.text, None) for sample, answer in enumerate(kept) if answer is not None]

    def _prefetch(self, rows: Sequence[dict[str, str]]) -> None:
        for sample in range(self._samples):
            self._desk.prefetch(rows, sample)

    def _answer(self, id: str, sample: int, text: str | None) -> Answer:
        return Answer(id, sample, text or "", self._desk.reason(id, sample) if text is None else None)


class BatchAnswers:
    """Answers asked in batches, then read.

    Args:
        desk: The teacher's; it reads what the batches brought, and asks nobody from then on.
        recipe: The stage's, its teacher an endpoint.
        folder: Where batches are written down.
    """

    def __init__(self, desk: TeacherAnswers, recipe: CollectRecipe, folder: Path):
        self._desk, self._samples = desk, recipe.samples
        self._asker, client = _asker(desk, recipe, folder)
        desk.teacher = BatchTeacher(client, self._asker)
        self.stopped: Stopped | None = None

    def of(self, rows: "Dataset") -> Iterator[tuple[dict[str, Any], list[Answer]]]:
        """See `Answers`."""
        ids = rows["id"]
        with closing(self._asker):
            self._ask(ids)
        if self.stopped is not None:
            rows = rows.select([index for index, id in enumerate(ids) if all(map(self._asker.was_asked, self._of(id)))])
        yield from DirectAnswers(self._desk, self._samples).of(rows)

    def _ask(self, ids: Sequence[str]) -> None:
        requests = lambda: (request for id in ids for request in self._of(id))  # noqa: E731
        try:
            _wait(self._asker, lambda moved: self._asker.run(requests, moved))
        except (BudgetError, TeacherError) as error:
            self.stopped = error

    def _of(self, id: str) -> Iterator[EndpointRequest]:
        return (self._desk.request(id, sample) for sample in range(self._samples))


def collect_open(desk: TeacherAnswers, recipe: CollectRecipe, folder: Path) -> None:
    """Brings in the batches that earlier starts submitted: they are paid for, whoever asks the rest.

    Args:
        desk: The teacher's.
        recipe: The stage's.
        folder: Where batches are written down.

    Raises:
        TeacherError: they can't be had.
    """
    asker, _ = _asker(desk, recipe, folder)
    with closing(asker):
        _wait(asker, asker.collect)


def useless(asked: int, desk: TeacherAnswers) -> TeacherError:
    """The error over a teacher without one usable answer."""
    kinds: Counter[str] = Counter()
    for reason, count in desk.failures.items():
        kinds[reason.partition(":")[0]] += count
    reasons = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return TeacherError(
        f"{desk.teacher.name} gave no usable answer to any of {asked} questions ({reasons})",
        "see what it writes (prism teacher log); raise teacher.max_tokens if answers are cut off, or ask another",
    )


def _asker(desk: TeacherAnswers, recipe: CollectRecipe, folder: Path) -> tuple[BatchAsker, EndpointClient]:
    section = recipe.teacher
    assert isinstance(section, OpenAITeacher), "check refuses batches of another teacher"
    assert isinstance(desk.teacher, EndpointTeacher), "an endpoint's desk has an endpoint's teacher"
    client, price = desk.teacher.client, price_of(at_batch_price(section))
    url, terms = section.endpoint or "", Terms(price, section.max_calls, section.max_usd)
    return BatchAsker(client, folder, base_url=url, api_key_env=section.api_key_env, terms=terms), client


def _wait(asker: BatchAsker, work: Callable[[Callable[[int, int], None]], None]) -> None:
    """Works with batches under a progress bar; says what goes on without us."""
    with progress("waiting for batches", 0) as on_progress:
        try:
            work(on_progress)
        except KeyboardInterrupt:
            if waiting := ", ".join(asker.waiting):
                say(f"{waiting}: under way at the endpoint, and collected by the next start")
            raise
