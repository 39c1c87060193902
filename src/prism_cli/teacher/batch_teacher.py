"""A teacher that was asked in batches: by now it only tells what they brought."""

from collections.abc import Sequence

from prism_cli.endpoint.batch import BatchAsker
from prism_cli.endpoint.client import EndpointClient
from prism_cli.teacher.teachers import Failed, TeacherAnswer, TeacherRequest


class BatchTeacher:
    """The answers that batches brought.

    Args:
        client: Knows what is kept.
        asker: Asked for it.

    Attributes:
        name: Under which its answers are kept.
        client: As given.
    """

    def __init__(self, client: EndpointClient, asker: BatchAsker):
        self.name = client.name
        self.client, self._asker = client, asker

    def prefetch(self, requests: Sequence[TeacherRequest]) -> None:
        """Does nothing: all is asked."""

    def answers(self, requests: Sequence[TeacherRequest]) -> list[TeacherAnswer | Failed]:
        """One answer a request, or why there is none, in order; asks nobody."""
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        """Closes the connections."""
        self._asker.close()
        self.client.close()

    def _answer(self, request: TeacherRequest) -> TeacherAnswer | Failed:
        kept = self.client.kept(request)
        if kept is None:
            return Failed(request.row, self._asker.reason(request) or "not asked")
        return kept._replace(cached=not self._asker.was_answered_now(request))
