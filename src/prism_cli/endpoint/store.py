"""Answers that were paid for, kept in one SQLite file."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from prism_cli.errors import CheckpointError

_COLUMNS = "key, model, request, text, prompt_tokens, completion_tokens, created"


class StoredAnswer(NamedTuple):
    """One row of the store.

    Attributes:
        key: SHA-256 of `request`.
        model: Who answered.
        request: JSON of what was asked (messages, settings, digests of the images).
        text: The answer.
        prompt_tokens: As the endpoint counted them, or None.
        completion_tokens: As the endpoint counted them, or None.
        created: Seconds since the epoch.
    """

    key: str
    model: str
    request: str
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    created: float


class AnswerStore:
    """Answers by key, safe from several threads and several processes of one machine.

    Args:
        path: The file; it and its folder are made when missing.

    Raises:
        CheckpointError: the file can't be opened or is no answer store (every method may raise it).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        with self._failures_named():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One connection behind a lock: an answer takes seconds to come, a row microseconds to write.
            self._connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._switch_to_wal()
            # NORMAL would survive a killed process but not a power cut; an answer costs more than an fsync.
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT NOT NULL, request TEXT NOT NULL, "
                "text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, created REAL NOT NULL)"
            )
            self._connection.execute(f"SELECT {_COLUMNS} FROM answers LIMIT 1")

    def get(self, key: str) -> StoredAnswer | None:
        """The answer kept under `key`, or None."""
        with self._failures_named(), self._lock:
            query = self._connection.execute(f"SELECT {_COLUMNS} FROM answers WHERE key = ?", (key,))
            row = query.fetchone()
        return StoredAnswer(*row) if row else None

    def put(
        self,
        key: str,
        model: str,
        request: str,
        text: str,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
    ) -> None:
        """Keeps an answer; it is on disk when this returns. The first answer under a key stays."""
        row = StoredAnswer(key, model, request, text, prompt_tokens, completion_tokens, time.time())
        with self._failures_named(), self._lock:
            self._connection.execute(f"INSERT OR IGNORE INTO answers ({_COLUMNS}) VALUES (?,?,?,?,?,?,?)", row)

    def count(self) -> int:
        """How many answers are kept."""
        with self._failures_named(), self._lock:
            return self._connection.execute("SELECT COUNT(*) FROM answers").fetchone()[0]

    def __iter__(self) -> Iterator[StoredAnswer]:
        """All answers in the order they came, as they stand at the start; others may go on writing."""
        with self._failures_named(), closing(sqlite3.connect(self.path, timeout=60)) as reader:
            for row in reader.execute(f"SELECT {_COLUMNS} FROM answers ORDER BY rowid"):
                yield StoredAnswer(*row)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def _switch_to_wal(self) -> None:
        # SQLite's own busy timeout does not cover this switch: processes that open a new file together would fail.
        deadline = time.monotonic() + 60
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

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
