"""Ledger of batches: what was submitted, written down before it is sent, so that a killed command pays once."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from prism_cli.errors import CheckpointError
from prism_cli.runs.files import write_atomically


@dataclass
class Submission:
    """One batch.

    Attributes:
        mark: Ours; stands in the batch's metadata, so that it is found where its id was not written down in time.
        created: Seconds since the epoch.
        count: How many requests it has.
        batch: The endpoint's id, once known.
        ended: The batch's last status, once its answers are kept; None while it is open.
        failed: Key → why it got no answer, where asking again may help.
        rejected: Key → why it got no answer, where it can't.
    """

    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: float = field(default_factory=time.time)
    count: int = 0
    batch: str | None = None
    ended: str | None = None
    failed: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)


class Noted(NamedTuple):
    """A request of a batch, as it was when it was submitted.

    Attributes:
        row: Id of the data row.
        request: JSON of what was asked.
        known: How many answers to it were kept by then.
        most_usd: The most it can cost, or None where no price is known.
    """

    row: str
    request: str
    known: int
    most_usd: float | None


def under_way(folder: Path) -> list[str]:
    """The batches of a run whose answers are not kept yet: their ids, or marks where the id is not known; only looks.

    Raises:
        CheckpointError: a file can't be read.
    """
    return [submission.batch or submission.mark for submission in _submissions(folder) if submission.ended is None]


class Ledger:
    """The submissions of one run: `MARK.json` and, for its requests, `MARK.requests.jsonl`.

    Args:
        folder: Made when missing.

    Raises:
        CheckpointError: a file in it can't be read.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.submissions = sorted(_submissions(folder), key=lambda submission: submission.created)
        known = {submission.mark for submission in self.submissions}
        for draft in folder.glob("*.jsonl"):
            if draft.name.partition(".")[0] not in known:
                draft.unlink()  # of a command that was killed before it was written down, and so never sent

    @property
    def open(self) -> list[Submission]:
        """Those whose answers are not kept yet."""
        return [submission for submission in self.submissions if submission.ended is None]

    def tries(self, key: str) -> int:
        """Times a request came back without an answer, though asking again may help."""
        return sum(key in submission.failed for submission in self.submissions)

    def reason(self, key: str) -> str | None:
        """Why a request got no answer the last time, or None."""
        reasons = [s.rejected.get(key) or s.failed.get(key) for s in self.submissions]
        return next((reason for reason in reversed(reasons) if reason), None)

    def is_rejected(self, key: str) -> bool:
        """Whether asking again can't help."""
        return any(key in submission.rejected for submission in self.submissions)

    def mentions(self, word: str) -> bool:
        """Whether a reason of a failure has this word."""
        return any(word in reason for submission in self.submissions for reason in submission.failed.values())

    def upload(self, submission: Submission) -> Path:
        """File that the upload is built in."""
        return self._folder / f"{submission.mark}.upload.jsonl"

    def requests(self, submission: Submission) -> Path:
        """File of the batch's requests, a JSON list of key and `Noted` per line."""
        return self._folder / f"{submission.mark}.requests.jsonl"

    def results(self, submission: Submission) -> Path:
        """File that a result is downloaded to."""
        return self._folder / f"{submission.mark}.results.jsonl"

    def file(self, submission: Submission) -> Path:
        """File that the batch is written down in."""
        return self._folder / f"{submission.mark}.json"

    def noted(self, submission: Submission) -> dict[str, Noted]:
        """Its requests by key."""
        with open(self.requests(submission), encoding="utf-8") as file:
            return {key: Noted(*noted) for key, *noted in map(json.loads, file)}

    def save(self, submission: Submission) -> None:
        """Writes it down."""
        if submission not in self.submissions:
            self.submissions.append(submission)
        write_atomically(self.file(submission), json.dumps(asdict(submission)))

    def tidy(self, submission: Submission) -> None:
        """Deletes the files that an ended one needs no longer."""
        for path in self._folder.glob(f"{submission.mark}.*.jsonl"):
            path.unlink()

    def drop(self, submission: Submission) -> None:
        """Forgets one that never reached the endpoint."""
        self.submissions.remove(submission)
        self.tidy(submission)
        self.file(submission).unlink()


class Draft:
    """A batch being written."""

    def __init__(self, ledger: Ledger):
        self.submission, self._ledger, self._size = Submission(), ledger, 0
        # Closed in `finish`; what a kill leaves of them the ledger clears away.
        self._upload = open(ledger.upload(self.submission), "wb")  # noqa: SIM115
        self._requests = open(ledger.requests(self.submission), "w", encoding="utf-8")  # noqa: SIM115

    def fits(self, line: bytes, max_requests: int, max_bytes: int) -> bool:
        """Whether one more request may go into this batch."""
        return self.submission.count < max_requests and self._size + len(line) <= max_bytes

    def add(self, key: str, noted: Noted, line: bytes) -> None:
        """Writes a request."""
        self._upload.write(line)
        self._requests.write(f"{json.dumps([key, *noted])}\n")
        self._size += len(line)
        self.submission.count += 1

    def finish(self) -> Submission:
        """Closes the files and writes the submission down."""
        self._upload.close()
        self._requests.close()
        self._ledger.save(self.submission)
        return self.submission


def _submissions(folder: Path) -> Iterator[Submission]:
    for path in folder.glob("*.json"):
        try:
            yield Submission(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            # --fresh is refused while a batch is under way, and this may be one.
            raise CheckpointError(
                f"{path} can't be read: {error}", "restore it; deleted, what its batch has not brought is asked again"
            ) from None
