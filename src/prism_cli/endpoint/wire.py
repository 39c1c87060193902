"""Calls to an OpenAI-compatible endpoint: sent at its pace, tried again where that can help."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.failures import NoAnswerError, Passing, api_key, explain, passing, shown_url
from prism_cli.endpoint.pace import Pace
from prism_cli.endpoint.replies import Reply, read_reply
from prism_cli.errors import TeacherError

LARGEST_REPLY = 32 * 2**20
_CONNECT_TIMEOUT = 10
_NEW_LIMIT_NAME = "max_completion_tokens"
_DEAD_OR_CLOSED = (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError)


class FailedTry(Exception):
    """A try that failed in a way that may pass.

    Attributes:
        failure: What to tell when it does not.
        how: How to go on.
        ends: Whether the endpoint is given up on.
    """

    def __init__(self, failure: TeacherError, how: Passing, ends: bool = False):
        super().__init__(str(failure))
        self.failure, self.how, self.ends = failure, how, ends


class Wire:
    """One model behind one endpoint. All of it happens on one event loop.

    Args:
        endpoint: Which; a request that times out is sent as often as `limits.attempts` says.

    Attributes:
        url: The endpoint, as it may be shown.
        limit_name: The name under which it knows the longest answer.
        pace: Gives requests their turns.

    Raises:
        TeacherError: the URL is none, or the variable is not set.
    """

    def __init__(self, endpoint: Endpoint):
        base_url = endpoint.url or ""
        self.url, self._model, self._api_key_env = shown_url(base_url), endpoint.served_name, endpoint.key_env
        self._timeout, self._attempts = endpoint.limits.timeout, endpoint.limits.attempts
        self.limit_name = "max_tokens"
        self.pace = Pace(endpoint.limits.concurrency, self.url)
        # No read timeout: reasoning answers take minutes. A try's own timeout bounds it in all, a slow drip included.
        self._openai = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key(base_url, endpoint.key_env),
            max_retries=0,
            timeout=openai.Timeout(None, connect=_CONNECT_TIMEOUT),
        )

    async def persist(self, once: Callable[[], Awaitable[None]], place: str) -> None:
        """Tries until it works or another try can't help, with growing, random pauses.

        Args:
            once: One try, which calls `send`.
            place: The request's row, for messages.

        Raises:
            NoAnswerError: this request keeps failing while others may not.
            PrismError: what `once` raised for good.
        """
        retrying = AsyncRetrying(
            sleep=self.pace.sleep,
            wait=wait_random_exponential(multiplier=0.5, max=30),
            retry=retry_if_exception(lambda error: isinstance(error, FailedTry) and not error.ends),
            stop=_is_enough,
            reraise=True,
        )
        try:
            await retrying(once)
        except FailedTry as error:
            failure, ends = error.failure, error.ends
        else:
            return
        if ends:
            raise failure
        raise NoAnswerError(f"{place}: {failure}", *failure.cure, reason="unanswered")

    async def send(self, body: Callable[[], dict[str, Any]], place: str, started: float) -> Reply:
        """The reply to one call.

        Args:
            body: Makes the call's JSON; called in a thread, as scaling a picture down takes a while.
            place: The request's row, for messages.
            started: When its turn came.

        Raises:
            FailedTry: it may work when tried again; or nothing works any longer, which it says.
            NoAnswerError: the endpoint rejects this request.
            TeacherError: the endpoint is of no use.
        """
        made = await asyncio.to_thread(body)
        try:
            async with asyncio.timeout(self._timeout):
                raw = await self._post(made)
            reply = Reply("", "oversized") if raw is None else read_reply(raw)
        except TimeoutError:
            failure = self._judged(TimeoutError(f"no whole answer within {self._timeout:g} s"), place, started)
        except (openai.OpenAIError, httpx2.RequestError, ValueError) as error:
            failure = self._judged(error, place, started)
        else:
            self.pace.succeeded(started)
            return reply
        # Raised outside the handler, so that neither a link nor a local variable leads to the library's error: that
        # one carries the request's headers, and the key with them.
        raise failure

    async def close(self) -> None:
        """Closes the connections."""
        await self._openai.close()

    def _judged(self, failed: Exception, place: str, started: float) -> Exception:
        failure = explain(failed, self.url, self._model, self._api_key_env, f"{place}: ")
        if (how := passing(failed, self._attempts)) is None:
            return failure
        self.pace.failed(started, how.overloaded, how.retry_after)
        if (row := self.pace.hopeless) is not None:
            return FailedTry(TeacherError(f"{row}, the last one: {failure}", *failure.cure), how, ends=True)
        return FailedTry(failure, how)

    async def _post(self, body: dict[str, Any]) -> bytes | None:
        """The reply's bytes, or None if they are too many: then the rest is not read."""
        try:
            return await self._read(body)
        except openai.BadRequestError as error:
            # OpenAI's newer models know the limit by this name only; many other servers only by the old one.
            if _NEW_LIMIT_NAME in body or _NEW_LIMIT_NAME not in str(error):
                raise
        self.limit_name = _NEW_LIMIT_NAME
        body[_NEW_LIMIT_NAME] = body.pop("max_tokens")
        return await self._read(body)

    async def _read(self, body: dict[str, Any]) -> bytes | None:
        raw = bytearray()
        async with self._openai.chat.completions.with_streaming_response.create(**body) as response:
            async for chunk in response.iter_bytes():
                raw += chunk
                if len(raw) > LARGEST_REPLY:
                    return None
        return bytes(raw)


def served_model(endpoint: Endpoint) -> str:
    """The model to ask, found by a quick call that fails at once where a question would be retried for a while.

    Args:
        endpoint: Which. Where it names a model, an endpoint without a list of its models is fine too; else the one that
            it serves is taken.

    Raises:
        TeacherError: it can't be reached, refuses the key, or (with no model named) serves none or several.
    """
    base_url, api_key_env, model = endpoint.url or "", endpoint.key_env, endpoint.model
    url, failure, names = shown_url(base_url), None, []
    patience = openai.Timeout(60, connect=_CONNECT_TIMEOUT)
    client = openai.OpenAI(base_url=base_url, api_key=api_key(base_url, api_key_env), max_retries=1, timeout=patience)
    with client:
        try:
            names = [model.id for model in client.models.list()]
        except (openai.OpenAIError, ValueError) as error:
            if model is None or isinstance(error, _DEAD_OR_CLOSED):
                failure = explain(error, url, "a list of its models", api_key_env)
    if failure is not None:
        raise failure
    if model is not None:
        return model
    if len(names) != 1:
        some = ", ".join(sorted(names)[:10]) or "none"
        raise TeacherError(f"{url} serves {len(names)} models ({some})", "name one in {model}", ("model",))
    return names[0]


def _is_enough(state: RetryCallState) -> bool:
    assert state.outcome is not None, "asked after a try only"
    error = state.outcome.exception()
    assert isinstance(error, FailedTry), "only these are tried again"
    return error.how.tries is not None and state.attempt_number >= error.how.tries
