"""math-verify behind a time limit that holds: in a process of its own, which its own timers end."""

import atexit
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, NamedTuple

from prism_cli.errors import RewardError

_LOGGER = logging.getLogger(__name__)
_WORKER = Path(__file__).with_name("math_worker.py")


class MathProcess:
    """Compares expressions in one process, started at the first question and again after one that took too long.

    Safe in threads, which wait for each other, and in forked or spawned workers, daemons included, which each get a
    process of their own.

    Attributes:
        asked: Comparisons so far.
        timed_out: Comparisons ended by the limit so far.
    """

    def __init__(self, limit: float = 1.0):
        """
        Args:
            limit: Seconds of processor time a comparison may take; three times as much by the wall clock.
        """
        self.limit = limit
        self.asked = self.timed_out = 0
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def same(self, answer: str, reference: str) -> bool:
        """Whether math-verify finds two LaTeX expressions equal; False when it takes longer than the limit.

        Raises:
            RewardError: math-verify can't be started at all.
        """
        with self._lock:
            self.asked += 1
            question = json.dumps([answer, reference]) + "\n"
            worker = self._put(question) or self._put(question)
            if worker is None:
                raise RewardError("the process that compares mathematics doesn't stay alive", _HINT)
            try:
                verdict = worker.verdicts.readline()
            except BaseException:  # a verdict that nobody read would be taken for the next question's
                self._stop()
                raise
            if verdict:
                return json.loads(verdict)
            self._stop()
            self.timed_out += 1
            if self.timed_out == 1:
                _LOGGER.warning(
                    "comparing %r with %r took over %g s: counted as wrong, as any later one will be",
                    answer,
                    reference,
                    self.limit,
                )
            return False

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        with self._lock:
            self._stop()

    def _forget(self) -> None:
        # A forked child must not share its parent's pipes, nor a lock another thread held.
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def _put(self, question: str) -> "_Worker | None":
        """Hands a question to the process, started if need be; None when it has died since the last one."""
        self._worker = self._worker or _start(self.limit)
        try:
            self._worker.questions.write(question)
        except BrokenPipeError:
            self._stop()
        return self._worker

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.process.kill()
            worker.process.communicate()


class _Worker(NamedTuple):
    process: subprocess.Popen[str]
    questions: IO[str]
    verdicts: IO[str]


_HINT = f"see what this says: {sys.executable} -c 'import math_verify'"


def _start(limit: float) -> _Worker:
    # -P: a math_verify.py or types.py beside the caller's script must not be taken for the real one.
    command = [sys.executable, "-P", str(_WORKER), str(limit)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, bufsize=1)
    if process.stdin is None or process.stdout is None or process.stdout.readline() != "ready\n":
        process.kill()
        process.communicate()
        raise RewardError("the process that compares mathematics does not start", _HINT)
    return _Worker(process, process.stdin, process.stdout)
