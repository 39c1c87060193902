"""Replies of an endpoint: their text and how they ended, and whether that can be used as an answer."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from prism_cli.endpoint.store import OVERDUE, StoredAnswer

# More characters than this a token is no language: the endpoint did not hold max_tokens.
LONGEST_TOKEN = 32
# No call has more: what says so is no count.
_MOST_TOKENS = 2**31
# What servers call an answer's own end.
_COMPLETE = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
_REASONS = {
    "content_filter": "filtered",
    "safety": "filtered",
    "refusal": "refused",
    "empty": "empty",
    "oversized": "too long",
    OVERDUE: "unanswered",
}


def why_unusable(finish: str) -> str | None:
    """Why an answer with this `finish` can't be used, in the words of `NoAnswerError.reason`; None if it may be.

    Only what is known to be an answer's own end is one; servers have many names for the others.
    """
    known = finish.casefold()
    return None if known in _COMPLETE else _REASONS.get(known, "cut off")


class Reply(NamedTuple):
    """One completion.

    Attributes:
        text: The answer, or the refusal.
        finish: As `StoredAnswer.finish`.
        prompt_tokens: As the endpoint counted them, or None.
        completion_tokens: As the endpoint counted them, or None.
        served_model: The model that answered, by its own words, or None.
    """

    text: str
    finish: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    served_model: str | None = None


def read_reply(raw: bytes | bytearray | str) -> Reply:
    """The completion in a chat endpoint's reply; an empty one where tokens are billed without any.

    Raises:
        ValueError: it holds none.
    """
    # Servers send less than the protocol promises: a web page, an error with status 200, no choices.
    try:
        body = json.loads(raw)
    except RecursionError as error:
        raise ValueError("its reply is nested too deeply") from error
    if not isinstance(body, dict):
        raise ValueError(f"its reply is {type(body).__name__}, no completion")
    choices, usage, model = body.get("choices"), _dict(body.get("usage")), body.get("model")
    counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    served = _clean(model) if isinstance(model, str) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        if any(counts):
            return Reply("", "empty", *counts, served_model=served)
        message = _dict(body.get("error")).get("message")
        raise ValueError(f"it sent no choices{f', but: {message}' if message else ''}")
    text, finish = _text(_dict(choices[0].get("message")), choices[0].get("finish_reason"))
    return Reply(_clean(text), _clean(finish), *counts, served_model=served)


def problem(answer: StoredAnswer, max_tokens: int, check: Callable[[str], str | None]) -> tuple[str, str] | None:
    """Why an answer can't be used, or None.

    Judged each time it is read, so that another check judges old answers anew.

    Args:
        answer: From the store.
        max_tokens: The longest answer asked for.
        check: Says what is wrong with a text's form, or None.

    Returns:
        The reason in a word (as in `NoAnswerError.reason`), and its details.
    """
    if (reason := why_unusable(answer.finish)) is not None:
        return reason, answer.text[:100] if answer.finish == "refusal" else f"finish {answer.finish}"
    if not answer.text.strip():
        return "empty", f"finish {answer.finish}"
    if len(answer.text) > LONGEST_TOKEN * max_tokens:
        return "too long", f"longer than max_tokens={max_tokens} allow"
    malformed = check(answer.text)
    return ("malformed", malformed) if malformed else None


def _text(message: dict[str, Any], finish: Any) -> tuple[str, str]:
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list):
        content = "".join(str(_dict(part).get("text") or "") for part in content)
    text = content if isinstance(content, str) else ""
    if finish == "content_filter":
        return text, finish
    if refusal and isinstance(refusal, str):
        return refusal, "refusal"
    finish = finish if isinstance(finish, str) and finish else "stop"
    return ("", "empty") if not text.strip() and why_unusable(finish) is None else (text, finish)


def _clean(text: str) -> str:
    """The text as it can be written down: JSON may hold half a character."""
    return text.encode("utf-8", "replace").decode()


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _MOST_TOKENS else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
