"""Preview of requests: what an endpoint would be sent, as text."""

import base64
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from prism_cli.endpoint.kept import KeptAnswers
from prism_cli.endpoint.requests import EndpointRequest


def preview(requests: Iterable[EndpointRequest], kept: KeptAnswers) -> str:
    """Requests as they would be sent, pictures by their size; no key is in them."""
    url = kept.endpoint.url or "none"
    return "\n\n".join(_request(url, number, kept.body(request)) for number, request in enumerate(requests, 1))


def _request(url: str, number: int, body: Mapping[str, Any]) -> str:
    settings = [f"  {name}: {json.dumps(value)}" for name, value in body.items() if name not in ("model", "messages")]
    messages = [line for message in body["messages"] for line in (f"  [{message['role']}]", *_content(message))]
    head = [f"{number}. POST {url.rstrip('/')}/chat/completions", f"  model: {body['model']}"]
    return "\n".join([*head, *settings, *messages])


def _content(message: Mapping[str, Any]) -> list[str]:
    content = message["content"]
    pieces: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [piece["text"] if piece["type"] == "text" else _picture(piece["image_url"]["url"]) for piece in pieces]
    return [f"  {line}" for text in texts for line in text.splitlines()]


def _picture(url: str) -> str:
    data = base64.b64decode(url.partition(",")[2])
    image = Image.open(io.BytesIO(data))
    return f"<image {image.width}×{image.height} {image.format}, {len(data):,} bytes>"
