"""The teachers a recipe may name."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveInt,
)

from prism_cli.recipes.section import Section, UserPath, type_if_absent


def _plain_url(url: str) -> str:
    """An http(s) URL without anything secret in it: recipes are copied into run folders and model cards."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected a URL that begins with http:// or https://")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a URL with a user, password or query; put the key into the variable api_key_env names")
    return url


class OpenAITeacher(Section):
    """A teacher behind an OpenAI-compatible endpoint. Answers are kept: nothing is asked twice."""

    type: Literal["openai"] = "openai"
    endpoint: Annotated[str, AfterValidator(_plain_url)] | None = None
    """Base URL, e.g. https://api.openai.com/v1 or http://127.0.0.1:8000/v1; it can't hold a key."""
    model: str | None = None
    """Model name the endpoint knows; null asks the endpoint when it serves exactly one."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key (never the key)."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature of the teacher."""
    max_tokens: PositiveInt = 8192
    """Longest teacher answer."""
    concurrency: PositiveInt = 16
    """Requests in flight at most."""
    store: UserPath = "runs/teacher_answers.sqlite"
    """Where answers are kept, shared by all runs: nothing is asked twice."""
    max_calls: PositiveInt | None = None
    """Stop (exit code 3) before asking more often than this; null for no cap."""


class DatasetTeacher(Section):
    """Teacher answers from the data's own `teacher_response` column: alignment without an endpoint."""

    type: Literal["dataset"]


class EmbeddedTeacher(Section):
    """A picture world's oracle, served over HTTP on 127.0.0.1 while the stage runs."""

    type: Literal["embedded"]
    world: Literal["shapes"] = "shapes"
    """The world whose pictures it can read."""
    variant: Literal["exact", "weak_perception", "weak_reasoning", "text_only"] = "exact"
    """How good it is: faultless, sees badly, reasons badly, or never sees the picture."""


Teacher = Annotated[
    OpenAITeacher | DatasetTeacher | EmbeddedTeacher, Field(discriminator="type"), type_if_absent("openai")
]
