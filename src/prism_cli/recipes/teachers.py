"""Sections of the teachers and of other models behind endpoints."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from prism_cli.recipes.section import Fraction, ScaledDown, Section, UserPath, type_if_absent


def _plain_url(url: str) -> str:
    """An http(s) URL without anything secret in it: recipes are copied into run folders and model cards."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected a URL that begins with http:// or https://")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a URL with a user, password or query; put the key into the variable api_key_env names")
    return url


class PriceSection(Section):
    """An endpoint's price in US dollars per million tokens."""

    prompt: NonNegativeFloat
    """US dollars per million prompt tokens, pictures included."""
    completion: NonNegativeFloat
    """US dollars per million completion tokens."""


class Example(Section):
    """A worked example, placed before the question."""

    question: str
    """Text of the question."""
    response: dict[str, str]
    """Tag → text of the block; formatted as `response.parts` says."""


class _Asked(Section):
    attempts: PositiveInt = 3
    """Requests per question before it counts as failed; a refused, truncated or malformed answer is requested again."""


class _LiveTeacher(_Asked):
    modality: Literal["image", "text"] = "image"
    """`text` is for a teacher that takes no pictures: it gets the question, with the row's `caption` if there is one,
    and teaches every part except `perception`, which is left out of the discriminator and the advantage."""
    check: bool = True
    """Test before the first question whether it sees pictures and keeps the format; a teacher that does not see them is
    refused."""
    max_failed: Fraction = 0.05
    """Maximum share of rows on which the teacher may fail. Such rows are left out or replaced, and counted."""


class EndpointSection(_Asked):
    """A model behind an OpenAI-compatible endpoint. Its answers are stored and reused."""

    name: str | None = None
    """Name under which its answers are stored, to distinguish two models of the same name; null takes `model`."""
    endpoint: Annotated[str, AfterValidator(_plain_url)] | None = None
    """Base URL, e.g. https://api.openai.com/v1 or http://127.0.0.1:8000/v1; it must not contain a key."""
    model: str | None = None
    """The model's name at the endpoint; null works where the endpoint serves exactly one."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that contains the key (not the key)."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature."""
    max_tokens: PositiveInt = 8192
    """Maximum tokens of an answer."""
    concurrency: PositiveInt = 64
    """Maximum concurrent requests. Their number starts low, grows while the endpoint keeps up, and halves when it is
    overloaded."""
    timeout: PositiveFloat = 600.0
    """Total seconds allowed for a question; answers with reasoning take minutes."""
    store: UserPath = "runs/teacher_answers.sqlite"
    """File of the stored answers, shared by all runs."""
    max_calls: PositiveInt | None = None
    """Maximum requests; stops with exit code 3 before exceeding it. Null for no limit."""
    max_usd: NonNegativeFloat | None = None
    """Maximum cost in US dollars; stops with exit code 3 before exceeding it. Needs `price`. Null for no limit."""
    price: PriceSection | None = None
    """Price per million tokens; null counts tokens only."""

    @model_validator(mode="after")
    def _a_cap_needs_a_price(self):
        if self.max_usd is not None and self.price is None:
            raise ValueError("max_usd needs a price: give price: {prompt: …, completion: …}")
        return self


class OpenAITeacher(EndpointSection, _LiveTeacher):
    """A teacher behind an OpenAI-compatible endpoint. Its answers are stored and reused."""

    type: Literal["openai"] = "openai"
    instruction: str | None = "from parts"
    """System prompt for rows without their own: `from parts` generates it from the parts, null sends the policy's
    instruction if it has one, any other text is sent unchanged."""
    examples: tuple[Example, ...] = Field(default=(), strict=False)
    """Worked examples placed before each question."""
    max_image_pixels: PositiveInt = 1048576
    """Larger pictures are scaled down to this many pixels before they are sent; others are sent unchanged."""


class LLMJudge(EndpointSection):
    """A model that decides whether a free-text answer means the same as an accepted one."""

    temperature: NonNegativeFloat = 0.0
    """Sampling temperature."""
    max_tokens: PositiveInt = 512
    """Maximum tokens of a verdict."""


class DatasetTeacher(Section):
    """Teacher answers from the data's `teacher_response` column, without an endpoint."""

    type: Literal["dataset"]


class EmbeddedTeacher(_LiveTeacher):
    """The oracle of a synthetic picture world, served over HTTP on 127.0.0.1 while the stage runs."""

    type: Literal["embedded"]
    world: Literal["shapes"] = "shapes"
    """World whose pictures it reads."""
    variant: Literal["exact", "weak_perception", "weak_reasoning", "text_only"] = "exact"
    """Quality: without errors, with errors in perception, with errors in reasoning, or without the picture."""


Teacher = Annotated[
    OpenAITeacher | DatasetTeacher | EmbeddedTeacher, Field(discriminator="type"), type_if_absent("openai")
]


def oracle(null: bool = False) -> ScaledDown:
    """The picture world's oracle in place of another teacher; it sees what that one sees."""

    def teacher(other: OpenAITeacher | DatasetTeacher | EmbeddedTeacher | None) -> EmbeddedTeacher:
        if isinstance(other, EmbeddedTeacher):
            return other
        modality = other.modality if isinstance(other, OpenAITeacher) else "image"
        return EmbeddedTeacher(type="embedded", modality=modality)

    return ScaledDown(teacher, null)
