"""The teacher as the stages see it: text in, text out, from an endpoint or from a dataset column."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple, Protocol

from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.failures import NoAnswerError
from prism_cli.endpoint.requests import EndpointAnswer as TeacherAnswer
from prism_cli.endpoint.requests import EndpointRequest as TeacherRequest
from prism_cli.errors import DataError

__all__ = ["ColumnTeacher", "EndpointTeacher", "Failed", "Teacher", "TeacherAnswer", "TeacherRequest"]


class Failed(NamedTuple):
    """A request the teacher gave no usable answer to.

    Attributes:
        row: Id of the data row.
        reason: Why, in a word, as in `NoAnswerError.reason`.
    """

    row: str
    reason: str


class Teacher(Protocol):
    """Answers questions; only its text is ever needed."""

    name: str

    def prefetch(self, requests: Sequence[TeacherRequest]) -> None:
        """Starts asking and returns at once."""
        ...

    def answers(self, requests: Sequence[TeacherRequest]) -> list[TeacherAnswer | Failed]:
        """One answer a request, or why there is none, in order; waits for them."""
        ...

    def close(self) -> None:
        """Stops asking."""
        ...


class EndpointTeacher:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        client: Asks the endpoint; closed with the teacher.

    Attributes:
        name: Under which its answers are kept.
        client: As given.
    """

    def __init__(self, client: EndpointClient):
        self.name = client.name
        self.client = client
        self._asked: dict[str, Future[TeacherAnswer]] = {}

    def prefetch(self, requests: Sequence[TeacherRequest]) -> None:
        """Starts asking and returns at once; failures show in `answers`."""
        fresh = {key: request for request in requests if (key := self.client.key(request)) not in self._asked}
        self._asked.update(zip(fresh, self.client.submit(list(fresh.values())), strict=True))

    def answers(self, requests: Sequence[TeacherRequest]) -> list[TeacherAnswer | Failed]:
        """One answer a request, or why there is none, in order.

        All of them are awaited even if the endpoint fails: those under way are paid for and should reach the store.

        Raises:
            TeacherError: the endpoint failed for good.
            BudgetError: a cap was reached.
        """
        self.prefetch(requests)
        keys = [self.client.key(request) for request in requests]
        futures = [self._asked[key] for key in keys]
        unfinished = set(futures)
        while unfinished:
            # In short spells, so that Ctrl-C is seen on every platform.
            unfinished = wait(unfinished, timeout=0.5).not_done
        for key in keys:
            self._asked.pop(key, None)
        return [_outcome(future, request.row) for future, request in zip(futures, requests, strict=True)]

    def close(self) -> None:
        """Stops asking; what is under way is dropped."""
        self.client.close()


class ColumnTeacher:
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

    def close(self) -> None:
        """Does nothing: nothing is open."""

    def _text(self, row: str) -> str:
        text = self._answers.get(row)
        if not text:
            raise DataError(
                f"row {row}: {self._column} is empty",
                hint="fill the column, drop the row, or give an endpoint: --teacher-endpoint URL",
            )
        return text


def _outcome(future: Future[TeacherAnswer], row: str) -> TeacherAnswer | Failed:
    try:
        return future.result()
    except NoAnswerError as error:
        return Failed(row, error.reason)
