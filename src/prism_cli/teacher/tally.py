"""The account of a collection: answers kept and rejected, counted and written down."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from prism_cli.teacher.bulk import Answer

REJECTED = "rejected.jsonl"


class Collected(NamedTuple):
    """The counts of a collection.

    Attributes:
        file: Where it stands.
        prompts: Rows asked about.
        answers: Answers looked at, those that failed included.
        failed: Of these, those that the teacher failed to give.
        kept: Written to the file.
        unverified: Of these, those of rows without an answer to verify against.
        rejected: Reason → how many.
    """

    file: Path
    prompts: int
    answers: int
    failed: int
    kept: int
    unverified: int
    rejected: dict[str, int]

    def describe(self) -> list[str]:
        """Lines for the terminal."""
        rejected = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
        reasons = f" ({rejected})" if rejected else ""
        lines = [f"kept {self.kept:,} of {self.answers:,} answers{reasons}: {self.file}"]
        if self.failed:
            share = f"{self.failed:,} of {self.answers:,} questions ({self.failed / self.answers:.1%})"
            lines.append(f"the teacher failed on {share}; {REJECTED} says why")
        return lines


class Tally:
    """Counts of the answers that are kept, and a file of those that are not, each with its reason; a context.

    Args:
        path: The file, a JSON object per rejected answer.
    """

    def __init__(self, path: Path):
        self._path, self._rows = path, set()
        self._answers = self._failed = self._kept = self._unverified = 0
        self._rejected: Counter[str] = Counter()

    def __enter__(self) -> None:
        self._file = open(self._path, "w", encoding="utf-8")

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def is_kept(self, answer: Answer, reason: str | None, verified: bool) -> bool:
        """Counts an answer; the reason is `kind: details`."""
        self._rows.add(answer.row)
        self._answers += 1
        self._failed += answer.problem is not None
        if reason is not None:
            self._rejected[reason.partition(":")[0]] += 1
            line = {"row": answer.row, "sample": answer.sample, "reason": reason}
            self._file.write(f"{json.dumps(line, ensure_ascii=False)}\n")
            return False
        self._kept += 1
        self._unverified += not verified
        return True

    def collected(self, path: Path) -> Collected:
        """The counts."""
        counts = self._answers, self._failed, self._kept, self._unverified
        return Collected(path, len(self._rows), *counts, dict(self._rejected))
