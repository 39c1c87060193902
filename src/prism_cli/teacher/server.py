"""The OpenAI-compatible chat app that serves a teacher: a function that answers questions, behind HTTP."""

import hmac
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from prism_cli.errors import DataError
from prism_cli.local_server import LocalServer
from prism_cli.teacher.batch_routes import DAY, BatchRoutes
from prism_cli.teacher.chat_protocol import ApiError, ChatRequest, chat_request, completion, parse_body

# Where the API lies on the server; clients put the rest of a path behind it.
API = "v1"
MAX_BODY_BYTES = 20 * 2**20


class _Endpoint:
    """The routes' handlers and what they share."""

    def __init__(self, answer: Callable[[ChatRequest], list[str]], model: str, api_key: str | None, delay: float):
        self.answer, self.model, self.api_key, self.delay = answer, model, api_key, delay

    async def health(self, request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> JSONResponse:
        self.authorize(request)
        return JSONResponse({"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "prism"}]})

    async def chat(self, request: Request) -> JSONResponse:
        # The body is read to its end even when it will be refused: a client that still sends sees a reset, no answer.
        raw = await _read(request, MAX_BODY_BYTES)
        self.authorize(request)
        return JSONResponse(await self.complete(raw))

    async def complete(self, raw: bytes) -> dict[str, Any]:
        body = parse_body(raw)
        if body.model != self.model:
            message = f"no model {body.model!r} here, only {self.model!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        request = chat_request(body)
        await anyio.sleep(self.delay)
        try:
            texts = await run_in_threadpool(self.answer, request)
        except DataError as error:
            advice = f" ({error.hint})" if error.hint else ""
            raise ApiError(400, f"{error}{advice}", param="messages") from error
        return completion(body, texts)

    def authorize(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.api_key is not None and not hmac.compare_digest(given, self.api_key.encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")


async def _read(request: Request, limit: int) -> bytes:
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
    if size > limit:
        raise ApiError(413, f"the request has {size} bytes; at most {limit} are taken")
    return bytes(body)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    refusal = error
    if isinstance(error, HTTPException):
        refusal = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    if isinstance(refusal, ApiError):
        return JSONResponse(refusal.body(), refusal.status)
    response = JSONResponse(ApiError(500, f"the teacher failed: {type(error).__name__}: {error}").body(), 500)
    # uvicorn drops the connection after a crash without telling the client, which would fail its next request.
    response.headers["Connection"] = "close"
    return response


def create_app(
    answer: Callable[[ChatRequest], list[str]],
    model: str,
    api_key: str | None = None,
    delay: float = 0,
    batch_window: float = DAY,
) -> Starlette:
    """An app that speaks the OpenAI chat protocol, without streaming, and its batches.

    Tokens are whitespace-separated words, for `max_tokens` and in `usage`; images count nothing.

    Args:
        answer: Gives `n` texts for a request; a `DataError` of it becomes a 400 with its message. It runs in worker
            threads, several at once.
        model: The only model's name.
        api_key: When given, requests need it as a bearer token.
        delay: Seconds to wait before each answer.
        batch_window: Seconds after which a batch expires with what it has.
    """
    endpoint = _Endpoint(answer, model, api_key, delay)
    batches = BatchRoutes(endpoint.complete, endpoint.authorize, _read, batch_window)
    return Starlette(
        routes=[
            Route("/health", endpoint.health),
            Route("/v1/models", endpoint.models),
            Route("/v1/chat/completions", endpoint.chat, methods=["POST"]),
            *batches.routes(),
        ],
        exception_handlers=dict.fromkeys((ApiError, HTTPException, Exception), _on_error),
    )


class ServedEndpoint(LocalServer):
    """A context in which a chat app is served on 127.0.0.1 from a background thread; see `LocalServer`."""

    @property
    def url(self) -> str:
        """Base URL for clients, `http://127.0.0.1:PORT/v1`."""
        return base_url(self.address)


def base_url(address: str) -> str:
    """The base URL of a chat app that is served at an address."""
    return urljoin(address, API)
