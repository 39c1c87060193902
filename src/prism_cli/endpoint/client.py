"""A client of one model behind an OpenAI-compatible endpoint, for callers that are not asynchronous.

It lives on its own event-loop thread. Each distinct request is asked once, ever: requests under way are shared, answers
are on disk in an `AnswerStore` before their future resolves.
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import openai

from prism_cli.endpoint.budget import Budget
from prism_cli.endpoint.failures import NoAnswerError, api_key, explain, shown_url
from prism_cli.endpoint.requests import EndpointAnswer, EndpointRequest, describe, media_type, wire_messages
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import PrismError, TeacherError

# No short read timeout: reasoning answers take minutes; the budget is the backstop.
TIMEOUT = openai.Timeout(600, connect=10)
T = TypeVar("T")


class EndpointClient:
    """Asks one model, in the background, at most `concurrency` requests at a time.

    What a retry can cure (429, honouring Retry-After; 5xx; lost connections; timeouts) is retried with growing pauses.
    Any other failure, a budget reached included, ends the client: requests not yet sent, and all later ones, fail at
    once with that error, while those under way are still received and kept. Only a `NoAnswerError` concerns its own
    request alone.

    Args:
        base_url: For example http://127.0.0.1:8000/v1.
        model: A model the endpoint knows.
        api_key_env: Name of the environment variable that holds the key; an endpoint on this machine needs none.
        temperature: Sampling temperature.
        max_tokens: Longest answer.
        concurrency: Most requests at a time.
        max_retries: How often a request is sent again; 8 bridges about 40 seconds.
        store: Where answers are kept.
        budget: Caps and counts; None counts without a cap.

    Raises:
        TeacherError: the URL is none, or the variable is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        store: AnswerStore,
        api_key_env: str = "OPENAI_API_KEY",
        temperature: float = 1.0,
        max_tokens: int = 8192,
        concurrency: int = 16,
        max_retries: int = 8,
        budget: Budget | None = None,
    ):
        self.model = model
        self.store = store
        self.budget = budget or Budget()
        self._url, self._api_key_env = shown_url(base_url), api_key_env
        self._temperature, self._max_tokens = temperature, max_tokens
        self._limit_name = "max_tokens"
        self._openai = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key(base_url, api_key_env), max_retries=max_retries, timeout=TIMEOUT
        )
        self._slots = asyncio.Semaphore(concurrency)
        self._under_way: dict[str, Future[EndpointAnswer]] = {}
        self._submitting = threading.Lock()
        self._ended: PrismError | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"endpoint {self._url}", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[EndpointRequest]) -> list["Future[EndpointAnswer]"]:
        """Starts asking and returns at once: one future a request, in order; equal requests share one.

        Raises:
            DataError: an image is of no known kind. Nothing is asked then.
        """
        for request in requests:
            for image in request.images:
                media_type(image, where=f"row {request.row}" if request.row else "")
        with self._submitting:
            return [self._future(request) for request in requests]

    def key(self, request: EndpointRequest) -> str:
        """The key under which the answer to a request is kept."""
        return describe(request, self.model, self._temperature, self._max_tokens)[0]

    def close(self) -> None:
        """Stops: what is under way is dropped, waiting futures are cancelled. May be called twice."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)
        self._thread.join(timeout=10)
        if not self._thread.is_alive():
            self._loop.close()

    def _future(self, request: EndpointRequest) -> "Future[EndpointAnswer]":
        key, description = describe(request, self.model, self._temperature, self._max_tokens)
        if (shared := self._under_way.get(key)) is not None:
            self.budget.reuse()
            return shared
        if (kept := self._kept(key)) is not None:
            done: Future[EndpointAnswer] = Future()
            done.set_result(kept)
            return done
        future = asyncio.run_coroutine_threadsafe(self._answer(key, description, request), self._loop)
        self._under_way[key] = future
        # The answer is in the store before this runs, so a later equal request finds it in one place or the other.
        future.add_done_callback(lambda _: self._under_way.pop(key, None))
        return future

    def _kept(self, key: str) -> EndpointAnswer | None:
        if (row := self.store.get(key)) is None:
            return None
        self.budget.reuse()
        return EndpointAnswer(row.text, row.model, row.prompt_tokens, row.completion_tokens, cached=True)

    async def _answer(self, key: str, description: str, request: EndpointRequest) -> EndpointAnswer:
        async with self._slots:
            if self._ended is not None:
                raise self._ended
            try:
                # Another process may have asked the same while this one waited for its turn.
                return self._kept(key) or await self._ask(key, description, request)
            except NoAnswerError:
                raise
            except PrismError as error:
                self._ended = self._ended or error
                raise

    async def _ask(self, key: str, description: str, request: EndpointRequest) -> EndpointAnswer:
        self.budget.reserve()
        try:
            completion = await self._guarded(self._complete(request), _place(request))
        except BaseException:  # cancelled included: the reservation must not stay
            self.budget.release()
            raise
        usage = getattr(completion, "usage", None)
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        text, problem = _text_of(completion)
        if problem is None:
            self.store.put(key, self.model, description, text, *tokens)
        self.budget.settle(*tokens)
        if problem is not None:
            hint = "raise max_tokens" if "length" in problem else "drop the row, or ask another teacher"
            raise NoAnswerError(f"{_place(request)}{self.model} at {self._url} {problem}", hint=hint)
        return EndpointAnswer(text, self.model, *tokens, cached=False)

    async def _complete(self, request: EndpointRequest) -> Any:
        limit_name = self._limit_name
        try:
            return await self._create(request, limit_name)
        except openai.BadRequestError as error:
            # OpenAI's newer models know the limit by this name only; many other servers only by the old one.
            if limit_name == "max_completion_tokens" or "max_completion_tokens" not in str(error):
                raise
        self._limit_name = "max_completion_tokens"
        return await self._create(request, self._limit_name)

    async def _create(self, request: EndpointRequest, limit_name: str) -> Any:
        settings: dict[str, Any] = {"temperature": self._temperature, limit_name: self._max_tokens}
        messages: Any = wire_messages(request)
        return await self._openai.chat.completions.create(model=self.model, messages=messages, **settings)

    async def _guarded(self, call: Coroutine[Any, Any, T], place: str) -> T:
        """Awaits a call, its failure told in our words.

        Raised outside the handler, so that no link leads to the library's error: that one carries the request's
        headers, and the key with them.
        """
        try:
            return await call
        except (openai.OpenAIError, ValueError) as error:
            failure = explain(error, self._url, self.model, self._api_key_env, place)
        raise failure

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._openai.close()
        self._loop.stop()


_DEAD_OR_CLOSED = (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError)


def served_model(base_url: str, api_key_env: str = "OPENAI_API_KEY", model: str | None = None) -> str:
    """The model to ask, found by a quick call that fails at once where a question would be retried for a while.

    Args:
        base_url: The endpoint.
        api_key_env: Name of the environment variable that holds the key.
        model: The model to ask for; None takes the one the endpoint serves. Endpoints without a list are fine then.

    Raises:
        TeacherError: it can't be reached, refuses the key, or (with no model named) serves none or several.
    """
    url, failure, names = shown_url(base_url), None, []
    client = openai.OpenAI(base_url=base_url, api_key=api_key(base_url, api_key_env), max_retries=1, timeout=TIMEOUT)
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
        raise TeacherError(f"{url} serves {len(names)} models ({some})", hint="name one: --teacher-model NAME")
    return names[0]


def _place(request: EndpointRequest) -> str:
    return f"row {request.row}: " if request.row else ""


def _text_of(completion: Any) -> tuple[str, str | None]:
    """The answer's text, or why there is none."""
    # Servers send less than the type promises: no choices, or a page that is no completion at all.
    choices = getattr(completion, "choices", None)
    if not choices:
        return "", "sent no choices"
    message, reason = choices[0].message, choices[0].finish_reason
    if reason == "content_filter":
        return "", "filtered the answer"
    if getattr(message, "refusal", None):
        return "", "refused to answer"
    if not message or not isinstance(message.content, str) or not message.content.strip():
        return "", f"sent an empty answer (finish_reason {reason})"
    return message.content, None
