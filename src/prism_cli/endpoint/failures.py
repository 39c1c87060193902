"""Failures of an endpoint: which may pass, and the error for each, without a secret in it."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import httpx2
import openai

from prism_cli.errors import TeacherError

_LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}
# How often one request is sent while others succeed: a rate limit passes, an error that stays is the request's own.
_TRIES, _TRIES_WHEN_LIMITED = 7, 30
_LAST_DATE = datetime.max.replace(tzinfo=UTC)
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance")


class NoAnswerError(TeacherError):
    """One request got no usable answer; others may.

    Attributes:
        reason: One of `refused`, `filtered`, `cut off`, `empty`, `malformed`, `too long`, `rejected`, `unanswered`,
            `unreadable picture`.
    """

    def __init__(
        self, message: str, hint: str | None = None, settings: Sequence[str] = (), *, reason: str = "rejected"
    ):
        super().__init__(message, hint, settings)
        self.reason = reason


class Passing(NamedTuple):
    """Reaction to a failure that may pass.

    Attributes:
        tries: How often the request may be sent in all, or None when it is no fault of this request.
        overloaded: Whether the endpoint says that it gets too many requests.
        retry_after: Seconds the endpoint asks to wait, or None.
        billed: Whether the call may be billed all the same.
    """

    tries: int | None
    overloaded: bool = False
    retry_after: float | None = None
    billed: bool = False


def passing(error: Exception, attempts: int) -> Passing | None:
    """Reaction to a failure, or None if asking again can't help.

    Args:
        error: What the library raised, a `TimeoutError`, or a `ValueError` for a reply that is none.
        attempts: How often a question that times out is sent: each may have been paid for.
    """
    if _never_reached(error):
        return Passing(None)
    if isinstance(error, TimeoutError):
        return Passing(attempts, billed=True)
    if not isinstance(error, openai.APIStatusError):
        return Passing(_TRIES)
    code = error.status_code
    if code in (429, 503) and not _is_out_of_money(error):
        headers = error.response.headers
        return Passing(_TRIES_WHEN_LIMITED, True, _seconds(headers.get("retry-after"), headers))
    return Passing(_TRIES) if code in (408, 409) or (code >= 500 and code != 501) else None


def api_key(base_url: str, api_key_env: str) -> str:
    """The key from the environment, without blanks around it; an endpoint on this machine does without.

    Raises:
        TeacherError: the variable is not set, or holds what can't be sent as a key.
    """
    # Never in a local variable here: tracebacks show those.
    if _is_sendable(_key(api_key_env)):
        return _key(api_key_env)
    if _key(api_key_env):
        raise TeacherError(
            f"the environment variable {api_key_env} holds characters that no key has (a line break, an accent, …)",
            hint=f"copy the key anew: export {api_key_env}=…",
        )
    if _split(base_url).hostname in _LOCAL_HOSTS:
        return "none"
    raise TeacherError(
        f"{shown_url(base_url)} needs a key and the environment variable {api_key_env} is not set",
        f"export {api_key_env}=…, or name another variable in {{api_key_env}} (no key needed? any word will do)",
        ("api_key_env",),
    )


def shown_url(base_url: str) -> str:
    """The URL as it may be shown.

    Raises:
        TeacherError: it is no URL of an endpoint, or holds what should be secret.
    """
    return _split(base_url)._replace(fragment="").geturl()


def explain(error: Exception, url: str, model: str, api_key_env: str, place: str = "") -> TeacherError:
    """The error to raise for one of the library's, when asking again can't help or did not.

    Args:
        error: What the library raised, a `TimeoutError`, or a `ValueError` for a reply that is none.
        url: The endpoint, as it may be shown.
        model: What was asked for.
        api_key_env: Name of the variable that holds the key.
        place: "row X: " where only one request is concerned.

    Returns:
        A `NoAnswerError` when the endpoint rejected just this request, else a `TeacherError` that ends the client.
    """
    if not isinstance(error, openai.APIStatusError):
        return _without_status(error, url, api_key_env)
    code = error.status_code
    if code in (401, 403):
        # The server's own text is left out: some quote the key, or parts of it.
        state = (
            f"the key in {api_key_env}" if os.environ.get(api_key_env) else f"to answer without a key ({api_key_env})"
        )
        return TeacherError(f"{url} refused {state}: {code}", hint=f"set {api_key_env} to a key that may use {model}")
    if code == 404:
        return TeacherError(
            f"{url} does not know {model} (404)",
            "check {model}, and that {endpoint} ends where the API begins (usually /v1)",
            ("model", "endpoint"),
        )
    reply = _without_key(f"{code}: {_server_text(error)}", api_key_env)
    if _is_out_of_money(error):
        return TeacherError(f"{url} says that the account has no money left, {reply}", hint="top it up, then run again")
    if code == 429:
        return TeacherError(f"{url} is over its rate limit, {reply}", "lower {concurrency}, or wait", ("concurrency",))
    if code >= 500 or code in (408, 409):
        return TeacherError(
            f"{url} keeps failing, {reply}", hint="see the endpoint's own log; then run the command again"
        )
    reason = "filtered" if error.code == "content_filter" else "rejected"
    return NoAnswerError(
        f"{place}{url} rejected the request, {reply}",
        hint="is the row too long, or its image too large?",
        reason=reason,
    )


def _key(api_key_env: str) -> str:
    return os.environ.get(api_key_env, "").strip()


def _is_sendable(key: str) -> bool:
    return key != "" and key.isascii() and key.isprintable()


def _without_status(error: Exception, url: str, api_key_env: str) -> TeacherError:
    if isinstance(error, TimeoutError):
        settings = "timeout", "max_tokens"
        return TeacherError(f"{url} took too long: {error}", "raise {timeout}, or lower {max_tokens}", settings)
    if isinstance(error, (openai.APIConnectionError, httpx2.RequestError)):
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        if not _never_reached(error):
            return TeacherError(
                _without_key(f"{url} broke off ({reason})", api_key_env),
                hint="see the endpoint's own log; then run the command again",
            )
        return TeacherError(
            _without_key(f"{url} can't be reached ({reason})", api_key_env),
            "start it (a teacher for a try: `prism teacher serve`), or check {endpoint}",
            ("endpoint",),
        )
    return TeacherError(
        _without_key(f"{url} does not answer like a chat endpoint ({str(error)[:200]})", api_key_env),
        "check {endpoint}: the URL usually ends in /v1",
        ("endpoint",),
    )


def _never_reached(error: Exception) -> bool:
    cause = error.__cause__
    return isinstance(error, openai.APIConnectionError) and isinstance(
        cause, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol, httpx2.ProxyError)
    )


def _is_out_of_money(error: openai.APIStatusError) -> bool:
    return error.status_code == 402 or error.code in _NO_MONEY or error.type in _NO_MONEY


def _seconds(retry_after: str | None, headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for; None for none and for a value that is no time."""
    try:
        seconds = float(retry_after or "")
        return None if math.isnan(seconds) else max(0.0, seconds)
    except ValueError:
        pass
    if (until := _date(retry_after, beyond=_LAST_DATE)) is None:
        return None
    # The server's own clock where it tells it: ours may be wrong.
    now = _date(headers.get("date")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _date(text: str | None, beyond: datetime | None = None) -> datetime | None:
    """The date a header gives; `beyond` for one that no calendar has, None for none."""
    try:
        date = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    except OverflowError:
        return beyond
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _split(base_url: str) -> SplitResult:
    shown = base_url.rpartition("@")[2].partition("?")[0]
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise TeacherError(f"{shown!r} is no endpoint", hint="give a URL like http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        # Libraries write URLs to their logs.
        raise TeacherError(
            f"the URL of {shown} holds a user, password or query",
            "put the key into the environment variable that {api_key_env} names",
            ("api_key_env",),
        )
    return parts


def _server_text(error: openai.APIStatusError) -> str:
    body = error.body
    text = body.get("message") if isinstance(body, dict) else body
    return str(text or "no reason given")[:300]


def _without_key(text: str, api_key_env: str) -> str:
    key = os.environ.get(api_key_env, "")
    plain = {key, key.strip()}
    # Libraries and servers quote a header as Python, bytes or JSON would write it.
    written = {repr(one)[1:-1] for one in plain} | {repr(one.encode("utf-8", "replace"))[2:-1] for one in plain}
    shown = plain | written | {json.dumps(one)[1:-1] for one in plain}
    for one in sorted(filter(str.strip, shown), key=len, reverse=True):
        text = text.replace(one, f"[{api_key_env}]")
    return text
