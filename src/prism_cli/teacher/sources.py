"""Sources of a teacher's answers: an endpoint, a store that has them already, a column of the data."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple, Protocol

from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.failures import NoAnswerError
from prism_cli.endpoint.kept import KeptAnswers
from prism_cli.endpoint.requests import EndpointAnswer as TeacherAnswer
from prism_cli.endpoint.requests import EndpointRequest as TeacherRequest
from prism_cli.errors import DataError

__all__ = ["AnswerSource", "ColumnSource", "EndpointSource", "Failed", "KeptSource", "TeacherAnswer", "TeacherRequest"]


class Failed(NamedTuple):
    """A request the teacher gave no usable answer to.

    Attributes:
        row: Id of the data row.
        reason: Why, in a word, as in `NoAnswerError.reason`.
    """

    row: str
    reason: str


class AnswerSource(Protocol):
    """Answers questions; only its text is ever needed.

    Attributes:
        name: The name under which its answers are kept.
    """

    name: str

    def prefetch(self, requests: Sequence[TeacherRequest]) -> None:
        """Starts asking and returns at once."""
        ...

    def answers(self, requests: Sequence[TeacherRequest]) -> list[TeacherAnswer | Failed]:
        """One answer a request, or why there is none, in order; waits for them."""
        ...


class EndpointSource:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        client: Asks the endpoint.

    Attributes:
        name: Under which its answers are kept.
        client: As given.
    """

    def __init__(self, client: EndpointClient):
        self.name = client.name
        self.client = client
        self._under_way: dict[str, Future[TeacherAnswer]] = {}

    def prefetch(self, requests: Sequence[TeacherRequest]) -> None:
        """Starts asking and returns at once; failures show in `answers`."""
        fresh = {key: request for request in requests if (key := self.client.key(request)) not in self._under_way}
        self._under_way.update(zip(fresh, self.client.submit(list(fresh.values())), strict=True))

    def answers(self, requests: Sequence[TeacherRequest]) -> list[TeacherAnswer | Failed]:
        """One answer a request, or why there is none, in order.

        All of them are awaited even if the endpoint fails: those under way are paid for and should reach the store.

        Raises:
            TeacherError: the endpoint failed for good.
            BudgetError: a cap was reached.
        """
        self.prefetch(requests)
        keys = [self.client.key(request) for request in requests]
        futures = [self._under_way[key] for key in keys]
        unfinished = set(futures)
        while unfinished:
            # In short spells, so that Ctrl-C is seen on every platform.
            unfinished = wait(unfinished, timeout=0.5).not_done
        for key in keys:
            self._under_way.pop(key, None)
        return [_outcome(future, request.row) for future, request in zip(futures, requests, strict=True)]


class KeptSource:
    """Answers that are in a store already: of an earlier run, or brought by batches. Asks nobody.

    Args:
        kept: The endpoint's answers in the store.
        reason: Why a request has no usable answer there.
        is_new: Whether an answer came since this run began, and so cost a call.
        on_answer: Called for each answer given.
    """

    def __init__(
        self,
        kept: KeptAnswers,
        reason: Callable[[TeacherRequest], str | None] = lambda request: None,
        is_new: Callable[[TeacherRequest], bool] = lambda request: False,
        on_answer: Callable[[], None] = lambda: None,
    ):
        self.name = kept.name
        self._kept, self._reason, self._is_new, self._on_answer = kept, reason, is_new, on_answer

    def prefetch(self, requests: Sequence[TeacherRequest]) -> None:
        """Does nothing: what there is is here."""

    def answers(self, requests: Sequence[TeacherRequest]) -> list[TeacherAnswer | Failed]:
        """One answer a request, or why there is none, in order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: TeacherRequest) -> TeacherAnswer | Failed:
        kept = self._kept.kept(request)
        if kept is None:
            return Failed(request.row, self._reason(request) or "not asked")
        self._on_answer()
        return kept._replace(cached=not self._is_new(request))


class ColumnSource:
    """Answers that stand in the data already.

    Args:
        answers: Row id → the row's teacher answer, None or absent where it has none.
        column: The column's name, for messages.
    """

    name = "dataset"

    def __init__(self, answers: Mapping[str, str | None], column: str = "teacher_response"):
        self._answers = answers
        self._column = column

    def prefetch(self, requests: Sequence[TeacherRequest]) -> None:
        """Does nothing: the answers are here."""

    def answers(self, requests: Sequence[TeacherRequest]) -> list[TeacherAnswer | Failed]:
        """One answer a request, looked up by `request.row`.

        Raises:
            DataError: a row has no answer.
        """
        return [
            TeacherAnswer(self._text(request.row), self.name, prompt_tokens=None, completion_tokens=None, cached=True)
            for request in requests
        ]

    def _text(self, row: str) -> str:
        text = self._answers.get(row)
        if not text:
            raise DataError(
                f"row {row}: {self._column} is empty",
                "fill the column, drop the row, or take a teacher that answers (teacher.endpoint)",
            )
        return text


def _outcome(future: Future[TeacherAnswer], row: str) -> TeacherAnswer | Failed:
    try:
        return future.result()
    except NoAnswerError as error:
        return Failed(row, error.reason)
