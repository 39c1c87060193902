"""What is asked of an endpoint, how it is identified, and how it looks on the wire."""

import base64
import hashlib
import json
from typing import Any, NamedTuple

from prism_cli.errors import DataError


class EndpointRequest(NamedTuple):
    """One question.

    Attributes:
        messages: `{"role", "content": text}`, the system message first if there is one, the question last.
        images: Encoded pictures (PNG, JPEG, WebP, GIF), the bytes as read; they go with the last message.
        sample: Which of several answers to the same question this is.
        row: Id of the data row, for messages and column look-ups; two rows with the same content share one answer.
    """

    messages: list[dict[str, str]]
    images: tuple[bytes, ...] = ()
    sample: int = 0
    row: str = ""


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


def describe(request: EndpointRequest, model: str, temperature: float, max_tokens: int) -> tuple[str, str]:
    """The request's key and the JSON it is the SHA-256 of: all that shapes the answer, images as digests.

    The endpoint's URL is left out, so that moving a model to another machine keeps its answers.
    """
    description = json.dumps(
        {
            "model": model,
            "messages": request.messages,
            "images": [hashlib.sha256(image).hexdigest() for image in request.images],
            "temperature": float(temperature),
            "max_tokens": max_tokens,
            "sample": request.sample,
        },
        sort_keys=True,
        ensure_ascii=False,
    )
    return hashlib.sha256(description.encode()).hexdigest(), description


def media_type(image: bytes, where: str = "") -> str:
    """The picture's media type, told from its first bytes.

    Raises:
        DataError: it is none of PNG, JPEG, WebP, GIF.
    """
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    start = image[:8].hex(" ") or "nothing"
    raise DataError(
        f"{where or 'a request'}: an image that no endpoint takes (its bytes start with {start})",
        hint="give PNG, JPEG, WebP or GIF",
    )


def data_url(image: bytes) -> str:
    """The picture as a data URL.

    Raises:
        DataError: its kind is not known.
    """
    return f"data:{media_type(image)};base64,{base64.b64encode(image).decode()}"


def wire_messages(request: EndpointRequest) -> list[dict[str, Any]]:
    """The messages as the chat API takes them; images stand before the question's text, as data URLs."""
    if not request.images:
        return list(request.messages)
    pictures = [
        {
            "type": "image_url",
            "image_url": {"url": data_url(image)},
        }
        for image in request.images
    ]
    *before, last = request.messages
    return [*before, {**last, "content": [*pictures, {"type": "text", "text": last["content"]}]}]
