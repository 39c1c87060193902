"""A chat endpoint on 127.0.0.1 that misbehaves as told and remembers what it was asked."""

import asyncio
import inspect
import json
import random
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.endpoint import Endpoint, Limits, Sampling
from prism_cli.endpoint.requests import EndpointAnswer, EndpointRequest

Fault = Callable[[str], Response | Awaitable[Response]]


def status(code: int, message: str = "no", error_code: str | None = None, **headers: str) -> Fault:
    """An error status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    error = {"message": message, "type": "x", "code": error_code}
    return lambda question: JSONResponse({"error": error}, status_code=code, headers=named)


def answer(
    content: str | None, finish_reason: str = "stop", refusal: str | None = None, usage: bool = True, model: str = "m"
) -> Fault:
    """A completion with this content."""
    body: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": content, "refusal": refusal},
            }
        ],
    }
    if usage:
        body["usage"] = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return lambda question: JSONResponse(body)


def no_choices(question: str) -> Response:
    """A completion without choices."""
    return JSONResponse({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []})


def error_with_status_200(question: str) -> Response:
    """What routers send when the provider behind them failed."""
    return JSONResponse({"error": {"message": "provider returned error", "code": 502}})


def web_page(question: str) -> Response:
    """What a proxy shows."""
    return Response("<html>hello</html>", media_type="text/html")


def half_json(question: str) -> Response:
    """JSON that ends midway, though the reply itself is whole."""
    return Response('{"choices": [{"message"', media_type="application/json")


def broken_off(question: str) -> Response:
    """Promises more bytes than it sends, so that the server drops the connection midway."""
    return Response("{", headers={"content-length": "100"}, media_type="application/json")


async def hung(question: str) -> Response:
    """Nothing, for a minute."""
    await asyncio.sleep(60)
    return Response("too late")


def drip(question: str) -> Response:
    """One byte each 50 ms, for a minute: never silent, never done."""

    async def bytes_of_an_answer() -> AsyncIterator[bytes]:
        for _ in range(1200):
            yield b" "
            await asyncio.sleep(0.05)

    return StreamingResponse(bytes_of_an_answer(), media_type="application/json")


PASSING: dict[str, Fault] = {
    "429": status(429),
    "429, Retry-After": status(429, retry_after="0.2"),
    "500": status(500),
    "502": status(502),
    "503": status(503),
    "reset mid-body": broken_off,
    "hung": hung,
    "slow drip": drip,
    "invalid JSON": half_json,
    "web page": web_page,
    "no choices": no_choices,
    "error with status 200": error_with_status_200,
}
"""Faults without an answer; the same question may be answered next time."""

UNUSABLE: dict[str, Fault] = {
    "refusal": answer(None, refusal="I won't"),
    "content filter": answer("part of it", finish_reason="content_filter"),
    "cut off": answer("half an ans", finish_reason="length"),
    "empty": answer(""),
}
"""Answers that are paid for and can't be used."""


def sow(endpoint: "FaultyEndpoint", questions: Sequence[str], share: float, seed: int) -> Counter[str]:
    """Plans a fault of a random kind before this share of the questions; gives how many of each kind."""
    chance, kinds, sown = random.Random(seed), {**PASSING, **UNUSABLE}, Counter[str]()
    for question in questions:
        if chance.random() < share:
            kind = chance.choice(list(kinds))
            endpoint.plan[question] = [kinds[kind]]
            sown[kind] += 1
    return sown


class FaultyEndpoint:
    """Answers a question q with "answer to q", once the faults planned for it are used up.

    Attributes:
        plan: Question → the faults it meets first, in order.
        asked: Question → how often it came in.
        completed: Question → how often it was answered in full, faults apart.
        bodies: All requests, as sent.
        keys: The Authorization header of each.
        most_at_once: Most requests it ever held at a time.
        delay: Seconds an answer takes.
        models: What it says it serves.
    """

    def __init__(self, delay: float = 0.0, port: int = 0):
        self.plan: defaultdict[str, list[Fault]] = defaultdict(list)
        self.asked: Counter[str] = Counter()
        self.completed: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.most_at_once = self._now = 0
        self.delay = delay
        self.models = ["m"]
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
        ]
        self._server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off"))
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> "FaultyEndpoint":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Forced: some tests leave a request hanging, and a polite stop would wait for it.
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    async def _chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        content = body["messages"][-1]["content"]
        question = content if isinstance(content, str) else content[-1]["text"]
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        self.asked[question] += 1
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.delay)
            if self.plan[question]:
                response = self.plan[question].pop(0)(question)
                return await response if inspect.isawaitable(response) else response
            self.completed[question] += 1
            given = answer(f"answer to {question}")(question)
            assert isinstance(given, Response)
            return given
        finally:
            self._now -= 1

    async def _models(self, request: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in self.models]
        return JSONResponse({"object": "list", "data": data})


def ask(question: str, **rest: Any) -> EndpointRequest:
    """A request with one user message."""
    return EndpointRequest([{"role": "user", "content": question}], **rest)


def endpoint_at(url: str, model: str | None = "m", **settings: Any) -> Endpoint:
    """An endpoint as a value, its sampling and limits given one by one."""
    of = {kind: {name: settings.pop(name) for name in kind._fields if name in settings} for kind in (Sampling, Limits)}
    return Endpoint(url, model, sampling=Sampling(**of[Sampling]), limits=Limits(**of[Limits]), **settings)


def results(client: EndpointClient, *requests: EndpointRequest, timeout: float = 60) -> list[EndpointAnswer]:
    """The answers to requests, once all are there."""
    return [future.result(timeout=timeout) for future in client.submit(requests)]


def outcomes(client: EndpointClient, requests: Sequence[EndpointRequest], timeout: float = 60) -> list[Any]:
    """The answer to each request, or the error it ended with."""
    futures = client.submit(requests)
    return [future.exception(timeout=timeout) or future.result() for future in futures]


@contextmanager
def connecting(url: str, store: Any) -> Iterator[Callable[..., EndpointClient]]:
    """Makes clients of `url` that keep answers in `store`; all are closed in the end."""
    clients: list[EndpointClient] = []

    def connect(url: str = url, **settings: Any) -> EndpointClient:
        made = {name: settings.pop(name) for name in ("budget", "check") if name in settings}
        clients.append(EndpointClient(endpoint_at(url, **settings), store, **made))
        return clients[-1]

    try:
        yield connect
    finally:
        for client in clients:
            client.close()
