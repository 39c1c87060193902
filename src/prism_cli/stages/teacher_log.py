"""`prism teacher log`: calls of a store by teacher and model, what they cost, and the answers as a data set."""

import json
from collections import Counter, deque
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.endpoint.replies import why_unusable
from prism_cli.endpoint.store import AnswerStore, StoredAnswer, Totals
from prism_cli.errors import CheckpointError
from prism_cli.runs.files import write_atomically


class Log(NamedTuple):
    """Calls of a store.

    Attributes:
        totals: Per teacher and model.
        last: The newest calls, the oldest of them first.
    """

    totals: list[Totals]
    last: list[StoredAnswer]


def read(store: str, count: int) -> Log:
    """The totals of a store and its newest calls.

    Raises:
        CheckpointError: no store there.
    """
    answers = _open(store)
    try:
        return Log(answers.summary(), list(deque(answers, maxlen=count)))
    finally:
        answers.close()


def unusable(finishes: dict[str, int]) -> dict[str, int]:
    """Why answers can't be used → how many, as far as it can be told without knowing the form that was asked for."""
    reasons = Counter[str]()
    for finish, count in finishes.items():
        if (reason := why_unusable(finish)) is not None:
            reasons[reason] += count
    return dict(reasons)


def question(answer: StoredAnswer) -> str:
    """The text of the last user message of a call."""
    messages = json.loads(answer.request)["messages"]
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")


def export(store: str, file: str) -> int:
    """Writes the answers as rows that `prism` reads (prompt, completion, id); gives how many.

    The pictures are not in the store, only their digests (`image_sha256`); answers that ended badly are left out.

    Raises:
        CheckpointError: no store there, or the file's folder is missing.
    """
    answers = _open(store)
    try:
        rows = [_row(answer) for answer in answers if why_unusable(answer.finish) is None]
    finally:
        answers.close()
    if not Path(file).parent.is_dir():
        raise CheckpointError(f"no folder {Path(file).parent}", "make it, or name another file")
    write_atomically(Path(file), "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return len(rows)


def _row(answer: StoredAnswer) -> dict[str, Any]:
    request = json.loads(answer.request)
    return {
        "id": f"{answer.key[:16]}-{answer.attempt}",
        "prompt": request["messages"],
        "completion": [{"role": "assistant", "content": answer.text}],
        "image_sha256": request["images"],
        "row": answer.row,
        "teacher": answer.teacher,
        "model": answer.model,
    }


def _open(store: str) -> AnswerStore:
    if not Path(store).is_file():
        raise CheckpointError(f"no store of answers at {store}", "name one: `prism teacher log FILE` (teacher.store)")
    return AnswerStore(store)
