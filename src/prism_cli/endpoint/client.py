"""Client of one model behind an OpenAI-compatible endpoint, for callers that are not asynchronous.

It lives on its own event-loop thread. A request is asked until it has a usable answer, and then never again: requests
under way are shared, and every answer is on disk in an `AnswerStore` before anyone sees it.
"""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from prism_cli.endpoint.budget import Budget
from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.failures import NoAnswerError
from prism_cli.endpoint.kept import Check, KeptAnswers
from prism_cli.endpoint.replies import LONGEST_TOKEN, Reply
from prism_cli.endpoint.requests import EndpointAnswer, EndpointRequest, describe, most_prompt_tokens
from prism_cli.endpoint.store import OVERDUE, AnswerStore, StoredAnswer
from prism_cli.endpoint.wire import FailedTry, Wire, served_model
from prism_cli.errors import DataError, PrismError, TeacherError

__all__ = ["EndpointClient", "served_model"]

# How often a call looks whether those under way leave it money.
_LOOK_AGAIN = 0.05
_HINTS = {
    "cut off": "raise {max_tokens} if it is finish length; else see what it writes: prism teacher log",
    "malformed": "see what it writes: prism teacher log",
    "too long": "see what it writes: prism teacher log",
}


class EndpointClient(KeptAnswers):
    """Asks one model, in the background.

    Every answer is kept. One that can't be used (refused, filtered, cut off, empty, too long, or malformed by `check`)
    is asked for again, up to `limits.attempts` answers in all, earlier starts included; then the request ends with a
    `NoAnswerError`. What may pass (rate limits, honouring Retry-After; server errors; lost or broken replies) is tried
    again with growing, random pauses. Any other failure ends the client, and so do a budget and a row of failures
    without one success: requests not yet sent, and all later ones, fail at once with that error, while those under way
    are still received and kept.

    Args:
        endpoint: Which, its URL and its model known.
        store: Where answers are kept.
        budget: Caps and counts; None counts calls and tokens, without a cap.
        check: Says what is wrong with an answer's form, or None.

    Attributes:
        budget: As given.

    Raises:
        TeacherError: the URL is none, or the key's variable is not set.
    """

    def __init__(
        self, endpoint: Endpoint, store: AnswerStore, budget: Budget | None = None, check: Check = lambda text: None
    ):
        super().__init__(endpoint, store, check)
        self.budget = budget or Budget()
        self._wire = Wire(endpoint)
        self._under_way: dict[str, Future[EndpointAnswer]] = {}
        self._submitting = threading.Lock()
        self._ended: PrismError | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"endpoint {self._wire.url}", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[EndpointRequest]) -> list["Future[EndpointAnswer]"]:
        """Starts asking and returns at once: one future a request, in order; equal requests share one.

        Raises:
            DataError: an image is of no known kind, or can't be scaled down. Nothing is asked then.
        """
        described = [describe(request, self.endpoint) for request in requests]
        with self._submitting:
            return [self._future(request, *named) for request, named in zip(requests, described, strict=True)]

    def keep(
        self, key: str, description: str, row: str, reply: Reply, seconds: float | None = None, usd: float | None = None
    ) -> StoredAnswer:
        """Writes a reply into the store, as the budget's run's; it is on disk when this returns. Counts nothing.

        Args:
            key: The request's.
            description: The request's.
            row: Id of the row it was asked for.
            reply: What came back.
            seconds: How long it took.
            usd: What it cost, or None where no price is known.
        """
        # One character more than allowed is enough to judge a text that has no end.
        text = reply.text[: LONGEST_TOKEN * self.endpoint.sampling.max_tokens + 1]
        return self.store.put(
            StoredAnswer(
                key, self.name, self.model, description, text, reply.finish, reply.prompt_tokens,
                reply.completion_tokens, usd, self._wire.url, reply.served_model, row, seconds, self.budget.run,
            )
        )  # fmt: skip

    def close(self, patience: float = 0.0) -> None:
        """Stops: nothing more is sent, waiting futures are cancelled. May be called twice.

        Args:
            patience: Seconds in which calls under way may still bring their answers into the store; the rest is
                dropped.
        """
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(patience), self._loop)
        self._thread.join(timeout=patience + 10)
        if not self._thread.is_alive():
            self._loop.close()

    def _future(self, request: EndpointRequest, key: str, description: str) -> "Future[EndpointAnswer]":
        if (shared := self._under_way.get(key)) is not None:
            self.budget.reuse()
            return shared
        if (kept := self.usable(self.store.answers(key))) is not None:
            self.budget.reuse()
            done: Future[EndpointAnswer] = Future()
            done.set_result(kept)
            return done
        future = asyncio.run_coroutine_threadsafe(self._answer(request, key, description), self._loop)
        self._under_way[key] = future
        # The answer is in the store before this runs, so a later equal request finds it in one place or the other.
        future.add_done_callback(lambda _: self._under_way.pop(key, None))
        return future

    async def _answer(self, request: EndpointRequest, key: str, description: str) -> EndpointAnswer:
        try:
            return await self._until_usable(request, key, description)
        except NoAnswerError:
            raise
        except PrismError as error:
            self._ended = self._ended or error
            self._wire.pace.stop()
        # One error for all, also for those whose own failure came when the client had ended already.
        raise self._ended

    async def _until_usable(self, request: EndpointRequest, key: str, description: str) -> EndpointAnswer:
        is_new = False
        while (usable := self.usable(answers := self.store.answers(key))) is None:
            if len(answers) >= self.endpoint.limits.attempts:
                raise self._no_answer(request, answers[-1], len(answers))
            await self._ask(request, key, description)
            is_new = True
        if not is_new:  # another process did
            self.budget.reuse()
        return usable._replace(cached=not is_new)

    def _no_answer(self, request: EndpointRequest, last: StoredAnswer, attempts: int) -> NoAnswerError:
        fault = self.fault(last)
        assert fault is not None, "only asked of an answer that can't be used"
        reason, detail = fault
        return NoAnswerError(
            f"{request.place}: {self.model} at {self._wire.url} gave no usable answer in {attempts} attempts, "
            f"the last one was {reason} ({detail})",
            hint=_HINTS.get(reason, "drop the row, or ask another teacher"),
            settings=("max_tokens",),
            reason=reason,
        )

    async def _ask(self, request: EndpointRequest, key: str, description: str) -> None:
        """Brings one more answer into the store."""

        async def once() -> None:
            async with self._wire.pace.turn():
                set_aside = await self._set_aside(request)
                started = time.monotonic()

                async def keep(reply: Reply) -> None:
                    # Counted first: it is paid for, whether or not the disk takes it.
                    usd = self.budget.settle(reply.prompt_tokens, reply.completion_tokens, set_aside)
                    kept = key, description, request.row, reply, time.monotonic() - started, usd
                    # In a thread, as the disk may be slow; shielded, as closing must not lose a paid answer.
                    await asyncio.shield(self._loop.run_in_executor(None, self.keep, *kept))

                try:
                    reply = await self._wire.send(lambda: self._sendable(request), request.place, started)
                except FailedTry as failed:
                    if failed.how.billed:
                        await keep(Reply("", OVERDUE))
                    else:
                        self.budget.release(set_aside)
                    raise
                except BaseException:  # cancelled included: the reservation must not stay
                    self.budget.release(set_aside)
                    raise
                await keep(reply)

        await self._wire.persist(once, request.place)

    async def _set_aside(self, request: EndpointRequest) -> float:
        """Reserves a call, once it is sure to keep within the caps; gives the dollars set aside."""
        most = self._most_tokens(request) if self.budget.price else (0, 0)
        while self._ended is None:
            if (set_aside := self.budget.reserve(*most)) is not None:
                return set_aside
            await asyncio.sleep(_LOOK_AGAIN)
        raise self._ended

    def _most_tokens(self, request: EndpointRequest) -> tuple[int, int]:
        try:
            return most_prompt_tokens(request, self.endpoint.limits.max_image_pixels), self.endpoint.sampling.max_tokens
        except DataError as error:
            raise _unreadable(error) from error

    def _sendable(self, request: EndpointRequest) -> dict[str, Any]:
        self.limit_name = self._wire.limit_name
        try:
            return self.body(request)
        except DataError as error:
            raise _unreadable(error) from error

    async def _shut_down(self, patience: float) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others and patience:
            self._ended = self._ended or TeacherError("the client was closed")
            self._wire.pace.stop()
            _, others = await asyncio.wait(others, timeout=patience)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_default_executor()
        await self._wire.close()
        self._loop.stop()


def _unreadable(error: DataError) -> NoAnswerError:
    return NoAnswerError(str(error), *error.cure, reason="unreadable picture")
