"""Client of OpenAI's batch endpoint: submits, waits and collects, and pays once however often it is interrupted."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai

from prism_cli.endpoint.batches.ledger import Draft, Ledger, Noted, Submission
from prism_cli.endpoint.batches.results import NEW_LIMIT_NAME, Results
from prism_cli.endpoint.batches.terms import Room, most_usd
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.failures import api_key, explain, passing, shown_url
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.errors import BudgetError, DataError, TeacherError

# What OpenAI takes in one batch; its 200 MB with room for what a proxy adds.
MAX_REQUESTS = 50_000
MAX_BYTES = 190 * 10**6
CHAT = "/v1/chat/completions"
MARK = "prism"
NOT_ASKED = "not asked"
ENDED = ("completed", "expired", "cancelled", "failed")
FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 0.5, 60.0, 1.5
# Failed looks at a batch before giving up, eight seconds apart: outlasts a router's restart.
PATIENCE = 60
T = TypeVar("T")


class _RefusedError(TeacherError):
    """The endpoint said no: what was asked for did not come to be."""


class BatchAsker:
    """Puts the answers to requests into the client's store, asked in batches.

    Each batch is written down before it is sent, under a mark that also stands in the batch's own metadata: a command
    that is killed at any point finds it again. Answers that can't be used are asked again in the next batch, as often
    as the client's `attempts` say. The caps hold for all that the client's budget counts, earlier starts included.

    Args:
        client: Knows the requests' form and keys, what is kept and which answers can be used; asks nothing itself.
        endpoint: Where, at what price and up to which caps.
        folder: Where batches are written down.
        max_requests: Most requests a batch.
        max_bytes: Largest upload.

    Raises:
        TeacherError: no key.
    """

    def __init__(
        self,
        client: EndpointClient,
        endpoint: Endpoint,
        folder: Path,
        *,
        max_requests: int = MAX_REQUESTS,
        max_bytes: int = MAX_BYTES,
    ):
        self._client, self._endpoint = client, endpoint
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._ledger = Ledger(folder)
        base_url, api_key_env = endpoint.url or "", endpoint.key_env
        self._url, self._api_key_env = shown_url(base_url), api_key_env
        self._openai = openai.OpenAI(base_url=base_url, api_key=api_key(base_url, api_key_env), max_retries=3)
        self._unreadable: dict[str, str] = {}
        self._results = Results(client, self._ledger, endpoint.price, self._download)

    @property
    def waiting(self) -> list[str]:
        """Ids of the batches under way at the endpoint."""
        return [submission.batch for submission in self._ledger.open if submission.batch]

    def run(self, requests: Callable[[], Iterable[EndpointRequest]], on_progress: Callable[[int, int], None]) -> None:
        """Asks until every request has a usable answer in the store or can't get one.

        Args:
            requests: Gives all requests, each time anew: pictures of one batch fit into memory, those of all may not.
            on_progress: Told how many requests were answered, and how many submitted, since this began.

        Raises:
            TeacherError: the endpoint has no batches, or ended one for a reason that concerns all of it.
            BudgetError: a cap is reached; what was submitted is collected first.
        """
        before = 0
        while True:
            before = self._collect(before, on_progress)
            if not self._submit(requests, lambda count, before=before: on_progress(before, before + count)):
                return

    def collect(self, on_progress: Callable[[int, int], None]) -> None:
        """Waits for the batches under way and keeps what they bring; submits nothing.

        Args:
            on_progress: Told how many requests were answered, and how many were submitted.

        Raises:
            TeacherError: the endpoint forgot or refused a batch, or can't give its results.
        """
        self._collect(0, on_progress)

    def reason(self, request: EndpointRequest) -> str | None:
        """Why a request got no usable answer, or None if it has one."""
        if self._client.kept(request) is not None:
            return None
        answers = self._client.store.answers(key := self._client.key(request))
        problem = self._client.problem(answers[-1]) if answers else None
        return self._unreadable.get(key) or self._ledger.reason(key) or problem or NOT_ASKED

    def was_asked(self, request: EndpointRequest) -> bool:
        """Whether a request got an answer or a reason why it has none; no for those that a cap left out."""
        return self._client.kept(request) is not None or self.reason(request) != NOT_ASKED

    def was_answered_now(self, request: EndpointRequest) -> bool:
        """Whether its answer came in a batch collected since this began, and not from the store."""
        return self._client.key(request) in self._results.fresh

    def close(self) -> None:
        """Closes the connections."""
        self._openai.close()

    # Submitting -------------------------------------------------------------------------------------------------------

    def _submit(self, requests: Callable[[], Iterable[EndpointRequest]], on_progress: Callable[[int], None]) -> int:
        """Submits what is still to be asked and may be afforded; gives how many requests that are."""
        submitted, draft = 0, None
        room = Room(self._endpoint.caps, self._client.budget)
        for key, noted, line in self._wanted(requests(), room):
            if draft is not None and not draft.fits(line, self._max_requests, self._max_bytes):
                self._send(draft.finish())
                draft = None
            draft = draft or Draft(self._ledger)
            draft.add(key, noted, line)
            on_progress(submitted := submitted + 1)
        if draft is not None:
            self._send(draft.finish())
        elif room.refused:
            message, cap = room.refused
            hint = f"raise {{{cap}}} and run the same command again: the answers paid for are kept"
            raise BudgetError(message, hint, (cap,))
        return submitted

    def _wanted(self, requests: Iterable[EndpointRequest], room: Room) -> Iterator[tuple[str, Noted, bytes]]:
        """The requests to submit now, equal ones once, up to what may be afforded: key, note and line."""
        seen: set[str] = set()
        for request in requests:
            if (key := self._client.key(request)) in seen or not self._to_ask(request, key):
                continue
            seen.add(key)
            try:
                usd, line = most_usd(request, self._endpoint), self._line(request)
            except DataError as error:  # this row's alone
                self._unreadable[key] = f"unreadable picture: {error}"
                continue
            if not room.take(usd):
                return
            known = len(self._client.store.answers(key))
            yield key, Noted(request.row, self._client.description(request), known, usd), line

    def _to_ask(self, request: EndpointRequest, key: str) -> bool:
        if self._client.kept(request) is not None or self._ledger.is_rejected(key):
            return False
        return len(self._client.store.answers(key)) + self._ledger.tries(key) < self._client.endpoint.limits.attempts

    def _line(self, request: EndpointRequest) -> bytes:
        body = self._client.body(request)
        if NEW_LIMIT_NAME not in body and self._ledger.mentions(NEW_LIMIT_NAME):
            body[NEW_LIMIT_NAME] = body.pop("max_tokens")
        line = {"custom_id": self._client.key(request), "method": "POST", "url": CHAT, "body": body}
        return f"{json.dumps(line)}\n".encode()

    def _send(self, submission: Submission) -> None:
        upload = self._ledger.upload(submission)
        try:
            with open(upload, "rb") as file:
                named = (f"prism-{submission.mark}.jsonl", file)
                uploaded = self._guarded(lambda: self._openai.files.create(file=named, purpose="batch"))
        except TeacherError:
            self._ledger.drop(submission)
            raise
        submission.batch = self._create(submission, uploaded.id)
        self._ledger.save(submission)
        upload.unlink()

    def _create(self, submission: Submission, file: str) -> str:
        """The id of the batch of an uploaded file. Never repeated blindly: one that broke off may be there.

        Where it can't be told whether it is, the submission stays open and the next start looks for it.
        """
        batches = self._openai.with_options(max_retries=0).batches
        try:
            return self._guarded(
                lambda: batches.create(
                    input_file_id=file, endpoint=CHAT, completion_window="24h", metadata={MARK: submission.mark}
                )
            ).id
        except _RefusedError:
            self._ledger.drop(submission)
            raise
        except TeacherError:
            if (batch := self._find(submission)) is None:
                self._ledger.drop(submission)
                raise
            return batch

    # Collecting -------------------------------------------------------------------------------------------------------

    def _collect(self, before: int, on_progress: Callable[[int, int], None]) -> int:
        """Waits for all batches under way and keeps what they bring; gives how many requests came back so far."""
        for submission in self._ledger.open:
            submission.batch = submission.batch or self._find(submission)
            if submission.batch is None:
                self._ledger.drop(submission)
            else:
                self._ledger.save(submission)
        waiting, pause = self._ledger.open, FIRST_PAUSE
        done, submitted = before, before + sum(submission.count for submission in waiting)
        while waiting:
            under_way = 0
            for submission in list(waiting):
                batch = self._look(submission)
                if batch.status in ENDED:
                    self._results.keep(submission, batch)
                    waiting.remove(submission)
                    done, pause = done + submission.count, FIRST_PAUSE
                elif batch.request_counts is not None:
                    under_way += batch.request_counts.completed + batch.request_counts.failed
            on_progress(done + under_way, submitted)
            if waiting:
                time.sleep(pause)
                pause = min(pause * GROWTH, LONGEST_PAUSE)
        return done

    def _find(self, submission: Submission) -> str | None:
        """The id of a batch by its mark, where it was not written down in time; None if it never came to be."""
        unlisted = TeacherError(
            f"{self._url} lists no batches (404), so it can't be told whether that marked {submission.mark} was made",
            f"look for it in the account; if it is not there, delete {self._ledger.file(submission)}",
        )

        def marked() -> str | None:
            # Among all of them, however old: clocks differ, and are set.
            listed = self._openai.batches.list(limit=100)
            return next((batch.id for batch in listed if (batch.metadata or {}).get(MARK) == submission.mark), None)

        return self._guarded(marked, unlisted)

    def _look(self, submission: Submission) -> Any:
        """The batch as it stands; an endpoint that is away for a while is waited for."""
        batches, id = self._openai.with_options(max_retries=PATIENCE).batches, submission.batch
        assert id is not None, "_collect found it or dropped the submission"
        unknown = TeacherError(
            f"{self._url} does not know batch {id}, submitted earlier",
            f"use the account it was submitted with; to ask again, delete {self._ledger.file(submission)}",
        )
        return self._guarded(lambda: batches.retrieve(id), unknown)

    def _download(self, file: str, path: Path) -> None:
        def write() -> None:
            with self._openai.files.with_streaming_response.content(file) as response:
                response.stream_to_file(path)

        note = path.with_name(f"{path.name.partition('.')[0]}.json")
        gone = TeacherError(
            f"{self._url} has the results of a batch no longer (file {file})", f"to ask again, delete {note}"
        )
        self._guarded(write, gone)

    def _guarded(self, call: Callable[[], T], unknown: TeacherError | None = None) -> T:
        """Makes a call, its failure told in our words.

        Raised outside the handler, so that no link leads to the library's error: that one carries the key.

        Args:
            call: What to do.
            unknown: The error for a 404; None for that of an endpoint without batches.
        """
        try:
            return call()
        except openai.NotFoundError:
            failure = unknown or _RefusedError(
                f"{self._url} has no batches (404)",
                "ask it directly: batch=false (or check {endpoint})",
                ("endpoint",),
            )
        except (openai.OpenAIError, httpx2.RequestError, ValueError) as error:
            failure = explain(error, self._url, self._client.model, self._api_key_env)
            if isinstance(error, openai.APIStatusError) and passing(error, 1) is None:
                failure = _RefusedError(str(failure), *failure.cure)
        raise failure
