"""Requests to an endpoint, the keys their answers are kept under, and their form on the wire."""

import hashlib
import json
import math
from typing import Any, NamedTuple

from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.pictures import data_url, is_larger, media_type, pixels, shrunk

__all__ = [
    "EndpointAnswer",
    "EndpointRequest",
    "data_url",
    "describe",
    "media_type",
    "most_prompt_tokens",
    "wire_messages",
]

# Anthropic's rule; others take 0.3 to 1.5 times as many tokens for a picture, but some a few hundred at least.
PIXELS_A_TOKEN = 750
_LEAST_A_PICTURE = 300
# What a chat template puts around a message.
_AROUND_A_MESSAGE = 16


class EndpointRequest(NamedTuple):
    """One question.

    Attributes:
        messages: `{"role", "content": text}`, the system message first if there is one, the question last.
        images: Encoded pictures (PNG, JPEG, WebP, GIF), the bytes as read.
        sample: Which of several answers to the same question this is.
        row: Id of the data row, for messages and column look-ups; two rows with the same content share one answer.
        images_at: Index of the message the pictures go with; the last one unless said.
    """

    messages: list[dict[str, str]]
    images: tuple[bytes, ...] = ()
    sample: int = 0
    row: str = ""
    images_at: int = -1

    @property
    def place(self) -> str:
        """The row, for a message: "row 7"."""
        return f"row {self.row}" if self.row else "a request"


class EndpointAnswer(NamedTuple):
    """One answer.

    Attributes:
        text: What the model wrote.
        model: Who answered.
        prompt_tokens: As the endpoint counted them, or None.
        completion_tokens: As the endpoint counted them, or None.
        cached: Whether it cost no call.
    """

    text: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached: bool


def describe(request: EndpointRequest, endpoint: Endpoint) -> tuple[str, str]:
    """The request's key and the JSON it is the SHA-256 of: all that shapes the answer, images as digests.

    The endpoint's URL is left out, so that moving a model to another machine keeps its answers. What has its plain
    value is left out too, so that a setting added later does not lose the answers from before it.

    Raises:
        DataError: an image is of no known kind, can't be opened or is too large to decode.
    """
    described: dict[str, Any] = {
        "model": endpoint.served_name,
        "messages": request.messages,
        "images": [hashlib.sha256(image).hexdigest() for image in request.images],
        "temperature": float(endpoint.sampling.temperature),
        "max_tokens": endpoint.sampling.max_tokens,
        "sample": request.sample,
    }
    if endpoint.name not in (None, endpoint.model):
        described["teacher"] = endpoint.name
    limit = endpoint.limits.max_image_pixels
    if _has_larger(request, limit):
        described["max_image_pixels"] = limit
    last = len(request.messages) - 1
    if request.images and request.images_at not in (-1, last):
        described["images_at"] = request.images_at % len(request.messages)
    description = json.dumps(described, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(description.encode()).hexdigest(), description


def wire_messages(request: EndpointRequest, max_image_pixels: int | None = None) -> list[dict[str, Any]]:
    """The messages as the chat API takes them; images stand before the text of their message, as data URLs."""
    messages: list[dict[str, Any]] = list(request.messages)
    if not request.images:
        return messages
    limit = max_image_pixels
    sent = [image if limit is None else shrunk(image, limit, request.place) for image in request.images]
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in sent]
    message = messages[request.images_at]
    messages[request.images_at] = {**message, "content": [*content, {"type": "text", "text": message["content"]}]}
    return messages


def most_prompt_tokens(request: EndpointRequest, max_image_pixels: int | None = None) -> int:
    """More prompt tokens than a request can have.

    A token a byte of text, and twice the usual number for a picture, in the size in which it is sent.

    Raises:
        DataError: a picture can't be opened.
    """
    text = sum(len(message["content"].encode()) + _AROUND_A_MESSAGE for message in request.messages)
    sizes = [min(pixels(image, request.place), max_image_pixels or math.inf) for image in request.images]
    return text + sum(max(_LEAST_A_PICTURE, math.ceil(2 * size / PIXELS_A_TOKEN)) for size in sizes)


def _has_larger(request: EndpointRequest, limit: int | None) -> bool:
    for image in request.images:
        media_type(image, request.place)
    # All are looked at, the first larger one included: a bomb behind it must not pass.
    larger = [limit is not None and is_larger(image, limit, request.place) for image in request.images]
    return any(larger)
