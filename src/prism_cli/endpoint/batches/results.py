"""Results of an ended batch: answers for the store, and reasons where there is none."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prism_cli.endpoint.batches.ledger import Ledger, Noted, Submission
from prism_cli.endpoint.budget import Price
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.replies import Reply, read_reply
from prism_cli.endpoint.store import StoredAnswer
from prism_cli.errors import TeacherError

# OpenAI's newer models know max_tokens by this name only; a batch learns it from its failed lines.
NEW_LIMIT_NAME = "max_completion_tokens"
_RETRIED = (408, 409, 429)
# How often result files are downloaded until they are whole, and the seconds between.
DOWNLOADS, PAUSE = 4, 2.0


class Results:
    """Puts results of batches where they belong.

    Args:
        client: Its store keeps the answers, its budget counts them.
        ledger: Where submissions are written down.
        price: What an answer costs, or None.
        download: Brings a file of the endpoint to a path.

    Attributes:
        fresh: Keys answered since this began.
    """

    def __init__(
        self, client: EndpointClient, ledger: Ledger, price: Price | None, download: Callable[[str, Path], None]
    ):
        self._client, self._ledger, self._price, self._download = client, ledger, price, download
        self.fresh: set[str] = set()

    def keep(self, submission: Submission, batch: Any) -> None:
        """Keeps what an ended batch brought, and notes why the rest has no answer.

        Raises:
            TeacherError: its results can't be had in full, and it stays open; or the endpoint refused the whole batch,
                or someone cancelled it.
        """
        noted = self._ledger.noted(submission)
        answered = self._complete(submission, batch, noted)
        submission.failed |= dict.fromkeys(noted.keys() - answered, f"unanswered: the batch is {batch.status}")
        if batch.status == "failed":
            submission.failed = {}  # it was never begun: no request was tried
        submission.ended = batch.status
        self._ledger.save(submission)
        self._ledger.tidy(submission)
        _refuse(batch)

    def _complete(self, submission: Submission, batch: Any, noted: dict[str, Noted]) -> set[str]:
        """Reads the result files until they tell of as many requests as the batch says; gives their keys."""
        counts, seen = batch.request_counts, set[str]()
        expected = min(len(noted), counts.completed + counts.failed) if counts else 0
        for left in reversed(range(DOWNLOADS)):
            try:
                self._read(submission, batch, noted, seen)
                if len(seen) >= expected:
                    return seen
            except TeacherError:
                if not left:
                    raise
            if left:
                time.sleep(PAUSE)
        raise TeacherError(
            f"the results of batch {batch.id} tell of {len(seen)} requests, the batch of {expected}; what came is kept",
            "run the same command again to download them anew; if it stays so, delete "
            f"{self._ledger.file(submission)}: then the rest is asked, and paid, again",
        )

    def _read(self, submission: Submission, batch: Any, noted: dict[str, Noted], seen: set[str]) -> None:
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for result in self._lines(submission, file):
                key, response = result.get("custom_id"), result.get("response") or {}
                if key not in noted or key in seen:
                    continue
                if response.get("status_code") == 200:
                    reason, final = self._keep(key, noted[key], response.get("body")), False
                else:
                    reason, final = _failure(result)
                if reason is None:
                    self.fresh.add(key)
                else:
                    (submission.rejected if final else submission.failed)[key] = reason
                seen.add(key)

    def _keep(self, key: str, noted: Noted, body: Any) -> str | None:
        """Keeps an answer, once however often its batch is read; gives why there is none."""
        try:
            reply = read_reply(json.dumps(body))
        except ValueError as error:
            return f"unanswered: {error}"
        # Kept before a kill came between it and the end of its batch? Told by place, not by time: clocks are set back.
        since = self._client.store.answers(key)[noted.known :]
        if not any(kept.run == self._client.budget.run and _is_same(kept, reply) for kept in since):
            tokens = reply.prompt_tokens, reply.completion_tokens
            usd = self._price.usd(*tokens) if self._price else None
            # Who does not count tokens is booked at worst, as a cap must hold.
            usd = noted.most_usd if usd is None else usd
            self._client.keep(key, noted.request, noted.row, reply, usd=usd)
            self._client.budget.book(*tokens, usd)
        return None

    def _lines(self, submission: Submission, file: str) -> Iterator[dict[str, Any]]:
        """The lines of a result file; those cut off or garbled are left out."""
        path = self._ledger.results(submission)
        self._download(file, path)
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    result = json.loads(line)
                except ValueError:
                    continue
                if isinstance(result, dict):
                    yield result
        path.unlink()


def _is_same(kept: StoredAnswer, reply: Reply) -> bool:
    """Whether an answer is this reply."""
    return kept.finish == reply.finish and reply.text.startswith(kept.text)  # the store cuts what has no end


def _failure(result: dict[str, Any]) -> tuple[str, bool]:
    """Why a line of the error file has no answer, and whether asking again can't help."""
    response = result.get("response") or {}
    status, body = response.get("status_code"), response.get("body")
    error = result.get("error") or (body.get("error") if isinstance(body, dict) else None) or {}
    message = str(error.get("message") or error.get("code") or "no reason given")[:300]
    final = isinstance(status, int) and 400 <= status < 500 and status not in _RETRIED and NEW_LIMIT_NAME not in message
    return f"{'rejected' if final else 'unanswered'}: {f'{status} ' if status else ''}{message}", final


def _refuse(batch: Any) -> None:
    """Ends the command over a batch that says something about all its requests."""
    if batch.status == "failed":
        problems = [problem.message for problem in (batch.errors.data or [] if batch.errors else [])]
        reasons = "; ".join(str(problem) for problem in problems[:3]) or "no reason given"
        raise TeacherError(
            f"batch {batch.id} was refused: {reasons}",
            "when that is mended, run the same command again (or batch=false)",
        )
    if batch.status == "cancelled":
        raise TeacherError(
            f"batch {batch.id} was cancelled; what it had answered is kept",
            "run the same command again to submit the rest",
        )
