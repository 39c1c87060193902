"""Routes for OpenAI's files and batches on a served teacher; kept in memory, gone with the server."""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from email.parser import BytesParser
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prism_cli.teacher.chat_protocol import ApiError

MAX_FILE_BYTES = 200 * 2**20
MAX_REQUESTS = 50_000
AT_ONCE = 16
CHAT = "/v1/chat/completions"
DAY = 86_400.0
# Code and words of the error line of a request that a batch ended without answering.
_UNANSWERED = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}


class _Batch:
    """One batch: what clients see of it, and the work under way."""

    def __init__(self, input_file_id: str, metadata: dict[str, str] | None, window: float):
        now = int(time.time())
        self.tasks: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self.shown: dict[str, Any] = {
            "id": f"batch_{uuid.uuid4().hex}",
            "object": "batch",
            "endpoint": CHAT,
            "input_file_id": input_file_id,
            "completion_window": "24h",
            "status": "validating",
            "created_at": now,
            "expires_at": now + int(window),
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata,
        }

    def turn(self, status: str) -> None:
        """Changes its state and notes when."""
        self.shown |= {"status": status, f"{status}_at": int(time.time())}


class BatchRoutes:
    """The handlers of /v1/files and /v1/batches.

    Args:
        complete: Answers a chat request's body; an `ApiError` of it fails that line alone.
        authorize: Raises for a request without the key.
        read: Reads a request's body, up to a limit in bytes.
        window: Seconds a batch may take before it expires.
    """

    def __init__(
        self,
        complete: Callable[[bytes], Awaitable[dict[str, Any]]],
        authorize: Callable[[Request], None],
        read: Callable[[Request, int], Awaitable[bytes]],
        window: float = DAY,
    ):
        self._complete, self._authorize, self._read, self._window = complete, authorize, read, window
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._batches: dict[str, _Batch] = {}
        self._working: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Route]:
        """The routes, to be put beside the chat's."""
        return [
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files/{id}", self._file, methods=["GET", "DELETE"]),
            Route("/v1/files/{id}/content", self._content),
            Route("/v1/batches", self._create, methods=["POST"]),
            Route("/v1/batches", self._list, methods=["GET"]),
            Route("/v1/batches/{id}", self._retrieve),
            Route("/v1/batches/{id}/cancel", self._cancel, methods=["POST"]),
        ]

    async def _upload(self, request: Request) -> JSONResponse:
        raw = await self._read(request, MAX_FILE_BYTES)
        self._authorize(request)
        fields = _form(request.headers.get("content-type", ""), raw)
        if fields.get("purpose", (None, b""))[1] != b"batch" or "file" not in fields:
            raise ApiError(400, "a `file` with `purpose` batch is expected", param="purpose")
        name, content = fields["file"]
        return JSONResponse(self._keep(content, name or "upload.jsonl", "batch"))

    async def _file(self, request: Request) -> JSONResponse:
        self._authorize(request)
        shown, _ = self._known_file(request.path_params["id"])
        if request.method == "DELETE":
            del self._files[shown["id"]]
            return JSONResponse({"id": shown["id"], "object": "file", "deleted": True})
        return JSONResponse(shown)

    async def _content(self, request: Request) -> Response:
        self._authorize(request)
        return Response(self._known_file(request.path_params["id"])[1], media_type="application/jsonl")

    async def _create(self, request: Request) -> JSONResponse:
        raw = await self._read(request, 2**20)
        self._authorize(request)
        try:
            body = json.loads(raw)
            source, metadata = body["input_file_id"], body.get("metadata")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ApiError(400, "input_file_id, endpoint and completion_window are expected as JSON") from error
        if body.get("endpoint") != CHAT or body.get("completion_window") != "24h":
            raise ApiError(400, f"only endpoint {CHAT} with completion_window 24h is served", param="endpoint")
        _, content = self._known_file(source)
        batch = _Batch(source, metadata, self._window)
        self._batches[batch.shown["id"]] = batch
        task = asyncio.create_task(self._work(batch, content))
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return JSONResponse(batch.shown)

    async def _list(self, request: Request) -> JSONResponse:
        self._authorize(request)
        newest = [batch.shown for batch in reversed(self._batches.values())]
        after, limit = request.query_params.get("after"), int(request.query_params.get("limit", 20))
        start = next((i + 1 for i, shown in enumerate(newest) if shown["id"] == after), 0)
        page = newest[start : start + limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return JSONResponse({"object": "list", "data": page, "has_more": len(newest) > start + limit, **ends})

    async def _retrieve(self, request: Request) -> JSONResponse:
        self._authorize(request)
        return JSONResponse(self._known_batch(request).shown)

    async def _cancel(self, request: Request) -> JSONResponse:
        self._authorize(request)
        batch = self._known_batch(request)
        if batch.shown["status"] not in ("validating", "in_progress"):
            raise ApiError(409, f"the batch is {batch.shown['status']}")
        batch.turn("cancelling")
        for task in batch.tasks.values():
            task.cancel()
        return JSONResponse(batch.shown)

    async def _work(self, batch: _Batch, content: bytes) -> None:
        lines, problems = _requests(content)
        if problems:
            batch.shown["errors"] = {"object": "list", "data": problems}
            return batch.turn("failed")
        slots = asyncio.Semaphore(AT_ONCE)
        batch.tasks = {line["custom_id"]: asyncio.create_task(self._line(batch, line, slots)) for line in lines}
        batch.shown["request_counts"]["total"] = len(lines)
        if batch.shown["status"] == "validating":
            batch.turn("in_progress")
        else:  # cancelled before it began
            for task in batch.tasks.values():
                task.cancel()
        _, late = await asyncio.wait(batch.tasks.values(), timeout=self._window)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        end = "cancelled" if batch.shown["status"] == "cancelling" else "expired" if late else "completed"
        self._finish(batch, end)

    async def _line(self, batch: _Batch, line: dict[str, Any], slots: asyncio.Semaphore) -> dict[str, Any]:
        async with slots:
            try:
                status, body = 200, await self._complete(json.dumps(line["body"]).encode())
            except ApiError as error:
                status, body = error.status, error.body()
        batch.shown["request_counts"]["completed" if status == 200 else "failed"] += 1
        response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
        return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line["custom_id"], "response": response}

    def _finish(self, batch: _Batch, end: str) -> None:
        """Writes what came into the output file, and what failed or never ran into the error file."""
        results: dict[str, list[dict[str, Any]]] = {"output": [], "error": []}
        for id, task in batch.tasks.items():
            if task.cancelled():
                code, message = _UNANSWERED[end]
                results["error"].append(
                    {"custom_id": id, "response": None, "error": {"code": code, "message": message}}
                )
            elif (crash := task.exception()) is not None:
                failed = ApiError(500, f"the teacher failed: {type(crash).__name__}: {crash}")
                response = {"status_code": 500, "request_id": uuid.uuid4().hex, "body": failed.body()}
                results["error"].append({"custom_id": id, "response": response, "error": None})
            else:
                kind = "output" if task.result()["response"]["status_code"] == 200 else "error"
                results[kind].append(task.result() | {"error": None})
        for kind, lines in results.items():
            if lines:
                text = "".join(f"{json.dumps(line)}\n" for line in lines)
                name = f"{batch.shown['id']}_{kind}.jsonl"
                batch.shown[f"{kind}_file_id"] = self._keep(text.encode(), name, "batch_output")["id"]
        batch.turn(end)

    def _keep(self, content: bytes, name: str, purpose: str) -> dict[str, Any]:
        shown = {
            "id": f"file-{uuid.uuid4().hex}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self._files[shown["id"]] = (shown, content)
        return shown

    def _known_file(self, id: str) -> tuple[dict[str, Any], bytes]:
        if id not in self._files:
            raise ApiError(404, f"no file {id!r} here", param="id")
        return self._files[id]

    def _known_batch(self, request: Request) -> _Batch:
        if (id := request.path_params["id"]) not in self._batches:
            raise ApiError(404, f"no batch {id!r} here", param="id")
        return self._batches[id]


def _form(content_type: str, raw: bytes) -> dict[str, tuple[str | None, bytes]]:
    """The fields of a multipart form: name → (file name, content)."""
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + raw)
    if not message.is_multipart():
        raise ApiError(400, "a multipart form is expected")
    fields = {}
    for part in message.get_payload():
        name = part.get_param("name", header="content-disposition")  # pyright: ignore[reportAttributeAccessIssue]
        fields[name] = (part.get_filename(), part.get_payload(decode=True))  # pyright: ignore[reportAttributeAccessIssue]
    return fields


def _requests(content: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The requests of an input file, and the problems that fail the whole batch."""
    lines, problems, seen = [], [], set()
    for number, text in enumerate(content.splitlines(), start=1):
        try:
            line = json.loads(text)
            usable = line["method"] == "POST" and line["url"] == CHAT and isinstance(line["body"], dict)
            problem = None if usable else ("invalid_request", f"method POST, url {CHAT} and a body are expected")
            if line["custom_id"] in seen:
                problem = ("duplicate_custom_id", f"custom_id {line['custom_id']!r} stands twice")
            seen.add(line["custom_id"])
            lines.append(line)
        except (ValueError, KeyError, TypeError) as error:
            problem = ("invalid_json_line", f"no request: {error}")
        if problem:
            problems.append({"code": problem[0], "message": problem[1], "line": number, "param": None})
    if not lines and not problems:
        problems.append({"code": "empty_file", "message": "the file has no request", "line": None, "param": None})
    if len(lines) > MAX_REQUESTS:
        message = f"{len(lines)} requests, at most {MAX_REQUESTS} are taken"
        problems.append({"code": "too_many_tasks", "message": message, "line": None, "param": None})
    return lines, problems
