"""What an endpoint's reply says, and whether it can be used as an answer."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from prism_cli.endpoint.store import StoredAnswer

# More characters than this a token is no language: the endpoint did not hold max_tokens.
LONGEST_TOKEN = 32
REASONS = {
    "length": "cut off",
    "content_filter": "filtered",
    "refusal": "refused",
    "empty": "empty",
    "oversized": "too long",
}
"""`finish` of an answer that can't be used → why, in the words of `NoAnswerError.reason`."""


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
    """The completion in a chat endpoint's reply.

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
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        told = _dict(body.get("error")).get("message")
        raise ValueError(f"it sent no choices{f', but: {told}' if told else ''}")
    message = _dict(choices[0].get("message"))
    usage, model = _dict(body.get("usage")), body.get("model")
    text, finish = _text(message, choices[0].get("finish_reason"))
    tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    counts = [count if isinstance(count, int) and count >= 0 else None for count in tokens]
    return Reply(text, finish, *counts, served_model=model if isinstance(model, str) else None)


def problem(answer: StoredAnswer, max_tokens: int, check: Callable[[str], str | None]) -> tuple[str, str] | None:
    """Why an answer can't be used, or None.

    Judged each time it is read, so that another check judges old answers anew.

    Args:
        answer: From the store.
        max_tokens: The longest answer asked for.
        check: Says what is wrong with a text's form, or None.

    Returns:
        The reason in a word (as in `NoAnswerError.reason`), and what was found.
    """
    if answer.finish in REASONS:
        return REASONS[answer.finish], answer.text[:100] if answer.finish == "refusal" else f"finish {answer.finish}"
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
    if not text.strip() and finish != "length":
        return "", "empty"
    return text, finish if isinstance(finish, str) and finish else "stop"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
