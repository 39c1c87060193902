"""The OpenAI chat protocol as far as the embedded endpoint speaks it: read a request, write its completion."""

import base64
import json
import time
import uuid
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError


class ChatRequest(NamedTuple):
    """Chat request of a client.

    Attributes:
        system: The system messages, joined by newlines, or None.
        question: The text of the last user message.
        images: The encoded pictures of the last user message, as sent.
        temperature: 0 to 2.
        n: How many answers are wanted.
        seed: The client's, or None.
    """

    system: str | None
    question: str
    images: list[bytes]
    temperature: float
    n: int
    seed: int | None


class _ImageURL(BaseModel):
    url: str


class _TextPart(BaseModel):
    type: Literal["text"]
    text: str


class _ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: _ImageURL


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[_TextPart | _ImagePart, Field(discriminator="type")]]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, _TextPart))

    @property
    def image_urls(self) -> list[str]:
        parts = [] if isinstance(self.content, str) else self.content
        return [part.image_url.url for part in parts if isinstance(part, _ImagePart)]


class ChatBody(BaseModel):
    """The fields that are read; nulls are as good as absent, unknown fields are ignored."""

    model: str
    messages: list[_Message]
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None


class ApiError(Exception):
    """A refusal that goes back to the client: HTTP status, message, and OpenAI's `param` and `code`."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict:
        """The reply's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def parse_body(raw: bytes) -> ChatBody:
    """The checked body of a request.

    Raises:
        ApiError: 400, saying what is wrong.
    """
    try:
        body = ChatBody.model_validate(json.loads(raw))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ApiError(400, f"the request is no JSON: {error}") from error
    except ValidationError as error:
        problems = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors()]
        message = "; ".join(f"{where}: {what}" for where, what in problems)
        raise ApiError(400, message, param=problems[0][0] or None) from error
    if body.stream:
        raise ApiError(400, "this endpoint does not stream; leave `stream` out", param="stream")
    return body


def chat_request(body: ChatBody) -> ChatRequest:
    """Chat request of a body, with the protocol's defaults.

    Raises:
        ApiError: 400, when there is no user message or an image is neither a data: URL nor base64.
    """
    system = [message.text for message in body.messages if message.role in ("system", "developer")]
    users = [message for message in body.messages if message.role == "user"]
    if not users:
        raise ApiError(400, "there is no user message", param="messages")
    return ChatRequest(
        system="\n".join(system) if system else None,
        question=users[-1].text,
        images=[_image_bytes(url) for url in users[-1].image_urls],
        temperature=1.0 if body.temperature is None else body.temperature,
        n=body.n or 1,
        seed=body.seed,
    )


def _image_bytes(url: str) -> bytes:
    if url.startswith(("http://", "https://")):
        raise ApiError(400, f"images are not fetched: send {url[:60]!r} as a data: URL", param="messages")
    encoded = url.partition(",")[2] if url.startswith("data:") else url
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ApiError(400, f"an image is neither a data: URL nor base64: {error}", param="messages") from error


def completion(body: ChatBody, texts: list[str]) -> dict:
    """The reply with these texts, cut to the asked length; a token is a whitespace-separated word, images count 0."""
    limit = body.max_completion_tokens or body.max_tokens
    choices, completion_tokens = [], 0
    for i, text in enumerate(texts):
        words = text.split()
        cut = limit is not None and len(words) > limit
        completion_tokens += limit if cut and limit else len(words)
        message = {"role": "assistant", "content": " ".join(words[:limit]) if cut else text, "refusal": None}
        finish = "length" if cut else "stop"
        choices.append({"index": i, "message": message, "finish_reason": finish, "logprobs": None})
    prompt_tokens = sum(len(message.text.split()) for message in body.messages)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
