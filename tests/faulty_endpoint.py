"""A chat endpoint on 127.0.0.1 that misbehaves as told and remembers what it was asked."""

import asyncio
import json
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Fault = Callable[[str], Response]


def status(code: int, message: str = "no", **headers: str) -> Fault:
    """An error status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda question: JSONResponse({"error": {"message": message, "type": "x"}}, status_code=code, headers=named)


def answer(content: str | None, finish_reason: str = "stop", refusal: str | None = None, usage: bool = True) -> Fault:
    """A completion with this content."""
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
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


def web_page(question: str) -> Response:
    """What a proxy shows."""
    return Response("<html>hello</html>", media_type="text/html")


def broken_off(question: str) -> Response:
    """Promises more bytes than it sends, so that the server drops the connection midway."""
    return Response("{", headers={"content-length": "100"}, media_type="application/json")


class FaultyEndpoint:
    """Answers a question q with "answer to q", once the faults planned for it are used up.

    Attributes:
        plan: Question → the faults it meets first, in order.
        asked: Question → how often it came in.
        bodies: All requests, as sent.
        keys: The Authorization header of each.
        most_at_once: Most requests it ever held at a time.
        delay: Seconds an answer takes.
        models: What it says it serves.
    """

    def __init__(self, delay: float = 0.0):
        self.plan: defaultdict[str, list[Fault]] = defaultdict(list)
        self.asked: Counter[str] = Counter()
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
        self._socket = socket.create_server(("127.0.0.1", 0))
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
            fault = self.plan[question].pop(0) if self.plan[question] else answer(f"answer to {question}")
            return fault(question)
        finally:
            self._now -= 1

    async def _models(self, request: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in self.models]
        return JSONResponse({"object": "list", "data": data})
