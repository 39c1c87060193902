"""What an endpoint's failures mean, in words that hold no secret."""

import os
from urllib.parse import SplitResult, urlsplit

import openai

from prism_cli.errors import TeacherError

_LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}


class NoAnswerError(TeacherError):
    """One request got no usable answer (refused, filtered, empty, rejected); others may. It is not kept."""


def api_key(base_url: str, api_key_env: str) -> str:
    """The key from the environment; an endpoint on this machine does without.

    Raises:
        TeacherError: the variable is not set.
    """
    if os.environ.get(api_key_env):
        return os.environ[api_key_env]
    if _split(base_url).hostname in _LOCAL_HOSTS:
        return "none"
    raise TeacherError(
        f"{shown_url(base_url)} needs a key and the environment variable {api_key_env} is not set",
        hint=f"export {api_key_env}=…, or name another variable: teacher.api_key_env (no key needed? any word will do)",
    )


def shown_url(base_url: str) -> str:
    """The URL without what may be secret in it: user, password, query.

    Raises:
        TeacherError: it is no URL of an endpoint.
    """
    parts = _split(base_url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def explain(error: Exception, url: str, model: str, api_key_env: str, place: str = "") -> TeacherError:
    """The error to raise for one of the library's, after its retries.

    Args:
        error: What the library raised.
        url: The endpoint, as it may be shown.
        model: What was asked for.
        api_key_env: Name of the variable that holds the key.
        place: "row X: " where only one request is concerned.

    Returns:
        A `NoAnswerError` when the endpoint rejected just this request, else a `TeacherError` that ends the client.
    """
    if isinstance(error, openai.APIConnectionError):
        told = error.__cause__ or error
        reason = f"{type(told).__name__}: {told}" if str(told) else type(told).__name__
        return TeacherError(
            _without_key(f"{url} can't be reached ({reason})", api_key_env),
            hint="start it with `prism teacher serve …`, or check --teacher-endpoint",
        )
    if not isinstance(error, openai.APIStatusError):
        return TeacherError(
            _without_key(f"{url} does not answer like a chat endpoint ({str(error)[:200]})", api_key_env),
            hint="check --teacher-endpoint: the URL usually ends in /v1",
        )
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
            hint="check --teacher-model, and that the URL ends where the API begins (usually /v1)",
        )
    told = _without_key(f"{code}: {_server_text(error)}", api_key_env)
    if code == 429:
        return TeacherError(f"{url} is over its rate limit or quota, {told}", hint="lower teacher.concurrency, or wait")
    if code >= 500 or code in (408, 409):
        return TeacherError(
            f"{url} keeps failing, {told}", hint="see the endpoint's own log; then run the command again"
        )
    return NoAnswerError(
        f"{place}{url} rejected the request, {told}", hint="is the row too long, or its image too large?"
    )


def _split(base_url: str) -> SplitResult:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        shown = base_url.rpartition("@")[2]
        raise TeacherError(f"{shown!r} is no endpoint", hint="give a URL like http://127.0.0.1:8000/v1")
    return parts


def _server_text(error: openai.APIStatusError) -> str:
    body = error.body
    text = body.get("message") if isinstance(body, dict) else body
    return str(text or "no reason given")[:300]


def _without_key(text: str, api_key_env: str) -> str:
    key = os.environ.get(api_key_env)
    return text.replace(key, f"[{api_key_env}]") if key else text
