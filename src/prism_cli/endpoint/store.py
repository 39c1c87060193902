"""Store of answers: every call that was paid for, usable or not, in one SQLite file."""

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from prism_cli.errors import CheckpointError
from prism_cli.runs.disks import file_system, is_network

_SCHEMA = 3
# Noted as a call, but no answer to anything.
OVERDUE = "overdue"
_TABLE = """
CREATE TABLE calls (
    key TEXT NOT NULL, teacher TEXT NOT NULL, model TEXT NOT NULL, request TEXT NOT NULL, text TEXT NOT NULL,
    finish TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, usd REAL, url TEXT NOT NULL,
    served_model TEXT, "row" TEXT NOT NULL, seconds REAL, attempt INTEGER NOT NULL, created REAL NOT NULL,
    run TEXT NOT NULL DEFAULT '', UNIQUE (key, attempt)
)"""
_INDEX = "CREATE INDEX calls_of_a_run ON calls (run)"
_COLUMNS = (
    "key, teacher, model, request, text, finish, prompt_tokens, completion_tokens, usd, url, served_model, "
    '"row", seconds, run, attempt, created'
)
# The attempt is numbered by the same statement that writes it: two processes that ask the same keep both answers.
_INSERT = (
    f"INSERT INTO calls ({_COLUMNS}) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, COALESCE(MAX(attempt), 0) + 1, ? "
    "FROM calls WHERE key = ? RETURNING attempt"
)


class StoredAnswer(NamedTuple):
    """One call that was answered.

    Attributes:
        key: SHA-256 of `request`.
        teacher: The name under which the answer is kept.
        model: The model that was asked for.
        request: JSON of what was asked (messages, settings, digests of the images).
        text: What came back: the answer, or a refusal.
        finish: The endpoint's finish_reason (`stop`, `length`, `content_filter`, …), or `refusal`, `empty`, `oversized`
            where there is no answer, `overdue` where none was waited for.
        prompt_tokens: As the endpoint counted them, or None.
        completion_tokens: As the endpoint counted them, or None.
        usd: What it cost, or the most it can have cost where tokens were not counted; None where no price was given.
        url: The endpoint asked, without secrets.
        served_model: The model's name in the endpoint's reply, or None.
        row: Id of the data row it was asked for.
        seconds: How long the answer took, or None.
        run: Whose spending it was, or "" where that is not known.
        attempt: 1 for the first answer under the key, 2 for the next; given by `put`.
        created: Seconds since the epoch; given by `put`.
    """

    key: str
    teacher: str
    model: str
    request: str
    text: str
    finish: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    usd: float | None = None
    url: str = ""
    served_model: str | None = None
    row: str = ""
    seconds: float | None = None
    run: str = ""
    attempt: int = 0
    created: float = 0.0


class Totals(NamedTuple):
    """Totals of one model under one teacher's name.

    Attributes:
        teacher: The name the answers are kept under.
        model: The model asked for.
        calls: Answered calls, usable or not.
        finishes: Finish → how many calls ended so.
        prompt_tokens: Sum of what was reported.
        completion_tokens: Sum of what was reported.
        mean_prompt_tokens: Mean over the calls that report them, or None.
        mean_completion_tokens: Mean over the calls that report them, or None.
        usd: Sum of the known costs, or None where none is known.
        first: When the first answer came, in seconds since the epoch.
        last: When the last one came.
    """

    teacher: str
    model: str
    calls: int
    finishes: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    mean_prompt_tokens: float | None
    mean_completion_tokens: float | None
    usd: float | None
    first: float
    last: float


class AnswerStore:
    """Answers by key, append-only, safe from several threads and several processes of one machine.

    Args:
        path: The file; it and its folder are made when missing.

    Raises:
        CheckpointError: the file can't be opened or is no answer store (every method may raise it).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        # Two connections, each behind a lock: a reader needs not wait until what is being written is on the disk.
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._to_write: deque[tuple[StoredAnswer, Future[StoredAnswer]]] = deque()
        with self._failures_named():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connected()
            self._set_journal()
            # NORMAL would survive a killed process but not a power cut; an answer costs more than an fsync.
            self._writer.execute("PRAGMA synchronous=FULL")
            if self._schema() != _SCHEMA:
                self._create_if_new()
            self._reader = self._connected()
            self._reader.execute(f"SELECT {_COLUMNS} FROM calls LIMIT 1")

    def answers(self, key: str) -> list[StoredAnswer]:
        """All answers kept under `key`, the first attempt first; calls that were not waited for are none."""
        with self._failures_named(), self._reading:
            query = self._reader.execute(
                f"SELECT {_COLUMNS} FROM calls WHERE key = ? AND finish != ? ORDER BY attempt", (key, OVERDUE)
            )
            return [StoredAnswer(*row) for row in query.fetchall()]

    def put(self, answer: StoredAnswer) -> StoredAnswer:
        """Keeps an answer as the next attempt under its key; it is on disk when this returns, as returned.

        Answers that come while the disk is busy are written together.
        """
        kept: Future[StoredAnswer] = Future()
        self._to_write.append((answer, kept))
        with self._writing:
            # Whoever held the lock before may have written this one too.
            if not kept.done():
                self._write()
        try:
            with self._failures_named():
                return kept.result()
        except (ValueError, OverflowError, sqlite3.InterfaceError) as error:
            raise CheckpointError(
                f"{self.path}: an answer can't be kept ({error})", hint="drop its row, or ask another teacher"
            ) from error
        except CancelledError as error:
            raise CheckpointError(
                f"{self.path}: interrupted before an answer was kept", hint="run the same command again"
            ) from error

    def count(self) -> int:
        """Number of stored calls."""
        with self._failures_named(), self._reading:
            return self._reader.execute("SELECT COUNT(*) FROM calls").fetchone()[0]

    def spent(self, run: str) -> dict[str, int | float]:
        """Sums that a run has spent, over all its starts: calls, prompt_tokens, completion_tokens, usd."""
        with self._failures_named(), self._reading:
            sums = self._reader.execute(
                "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0), "
                "COALESCE(SUM(usd), 0.0) FROM calls WHERE run = ?",
                (run,),
            ).fetchone()
        return dict(zip(("calls", "prompt_tokens", "completion_tokens", "usd"), sums, strict=True))

    def summary(self) -> list[Totals]:
        """Totals per teacher and model, in the order of their first answers."""
        with self._failures_named(), self._reading:
            totals = self._reader.execute(
                "SELECT teacher, model, COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0),"
                " AVG(prompt_tokens), AVG(completion_tokens), SUM(usd), MIN(created), MAX(created) "
                "FROM calls GROUP BY teacher, model ORDER BY MIN(rowid)"
            ).fetchall()
            finishes = self._reader.execute(
                "SELECT teacher, model, finish, COUNT(*) FROM calls GROUP BY teacher, model, finish ORDER BY finish"
            ).fetchall()
        by_model: dict[tuple[str, str], dict[str, int]] = {}
        for teacher, model, finish, calls in finishes:
            by_model.setdefault((teacher, model), {})[finish] = calls
        return [
            Totals(teacher, model, calls, by_model[teacher, model], *rest) for teacher, model, calls, *rest in totals
        ]

    def __iter__(self) -> Iterator[StoredAnswer]:
        """All answers in the order they came, as they stand at the start; others may go on writing."""
        with self._failures_named(), closing(sqlite3.connect(self.path, timeout=60)) as reader:
            for row in reader.execute(f"SELECT {_COLUMNS} FROM calls ORDER BY rowid"):
                yield StoredAnswer(*row)

    def close(self) -> None:
        """Closes the file."""
        with self._writing, self._reading:
            self._writer.close()
            self._reader.close()

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)

    def _write(self) -> None:
        batch = [self._to_write.popleft() for _ in range(len(self._to_write))]
        try:
            if self._commit(batch) is not None:
                # One that can't be written must not take the others with it.
                for one in batch:
                    if (failure := self._commit([one])) is not None:
                        one[1].set_exception(failure)
        except sqlite3.OperationalError as error:  # it is the file's, and so everyone's
            for _, kept in batch:
                if not kept.done():
                    kept.set_exception(error)
        finally:
            # After Ctrl-C: whoever waits for one of these must not wait for ever. What has a result keeps it.
            for _, kept in batch:
                kept.cancel()

    def _commit(self, batch: Sequence[tuple[StoredAnswer, "Future[StoredAnswer]"]]) -> Exception | None:
        """Writes all or none; gives why none, where that may be for what one of them holds."""
        try:
            with self._writer:
                self._writer.execute("BEGIN IMMEDIATE")
                written = [self._inserted(answer) for answer, _ in batch]
        except sqlite3.OperationalError:
            raise
        except (sqlite3.Error, ValueError, OverflowError) as error:
            return error
        for (_, kept), answer in zip(batch, written, strict=True):
            kept.set_result(answer)
        return None

    def _inserted(self, answer: StoredAnswer) -> StoredAnswer:
        *given, _, _ = answer
        created = time.time()
        ((attempt,),) = self._writer.execute(_INSERT, (*given, created, answer.key)).fetchall()
        return answer._replace(attempt=attempt, created=created)

    def _create_if_new(self) -> None:
        with self._writer:
            # The write lock first: of two processes that open a new file together, the second finds the work done.
            self._writer.execute("BEGIN IMMEDIATE")
            if (schema := self._schema()) == 0:
                if self._writer.execute("SELECT 1 FROM sqlite_master").fetchone():
                    raise CheckpointError(f"{self.path}: another program's database", "name another store")
                self._writer.execute(_TABLE)
                self._writer.execute(_INDEX)
                self._writer.execute(f"PRAGMA user_version = {_SCHEMA}")
            elif schema != _SCHEMA:
                raise CheckpointError(
                    f"{self.path}: an answer store of schema {schema}; this version of prism knows {_SCHEMA}",
                    hint="use the prism that wrote it, or name another store",
                )

    def _schema(self) -> int:
        return self._writer.execute("PRAGMA user_version").fetchone()[0]

    def _set_journal(self) -> None:
        """Lets readers read while an answer is written (WAL), where the disk can: WAL shares memory between processes,
        which machines that mount one disk have not."""
        journal = "DELETE" if is_network(file_system(self.path)) else "WAL"
        # SQLite's own busy timeout does not cover this switch: processes that open a new file together would fail.
        deadline = time.monotonic() + 60
        while True:
            try:
                self._writer.execute(f"PRAGMA journal_mode={journal}")
                return
            except sqlite3.OperationalError as error:
                if "locked" in str(error) and time.monotonic() < deadline:
                    time.sleep(0.02)
                elif "locked" not in str(error) and journal == "WAL":
                    journal = "DELETE"
                else:
                    raise

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise CheckpointError(
                f"{self.path}: the answer store can't be used ({error})",
                hint="check that the folder is writable, the disk is not full and no stopped process holds the file",
            ) from error
        except sqlite3.DatabaseError as error:
            raise CheckpointError(
                f"{self.path}: not an answer store, or damaged ({error})",
                hint="move the file away to start a new one; what it held will be asked again",
            ) from error
