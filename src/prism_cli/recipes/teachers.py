"""The teachers a recipe may name."""

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
    """What an endpoint charges, in US dollars a million tokens."""

    prompt: NonNegativeFloat
    """Dollars a million prompt tokens, pictures included."""
    completion: NonNegativeFloat
    """Dollars a million completion tokens."""


class Example(Section):
    """A worked example the teacher is shown before the question."""

    question: str
    """What is asked."""
    response: dict[str, str]
    """Tag → the block's text; written in the form of `response.parts`."""


class _Asked(Section):
    attempts: PositiveInt = 3
    """How often a question is put before it counts as failed; refused, cut-off and malformed answers are put again."""


class _LiveTeacher(_Asked):
    modality: Literal["image", "text"] = "image"
    """`text`: it can't see. It is given the question, with the row's `caption` if there is one, and teaches every part
    but `perception`, which leaves the discriminator and the advantage."""
    check: bool = True
    """Probe before the first question whether it sees the picture and keeps the form; a blind one is refused."""
    max_failed: Fraction = 0.05
    """Largest share of rows the teacher may fail on; those rows are left out or replaced, and counted."""


class EndpointSection(_Asked):
    """A model behind an OpenAI-compatible endpoint. Answers are kept: nothing is asked twice."""

    name: str | None = None
    """Name under which its answers are kept, to tell two with one model name apart; null takes the model's."""
    endpoint: Annotated[str, AfterValidator(_plain_url)] | None = None
    """Base URL, e.g. https://api.openai.com/v1 or http://127.0.0.1:8000/v1; it can't hold a key."""
    model: str | None = None
    """Model name the endpoint knows; null asks the endpoint when it serves exactly one."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key (never the key)."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature."""
    max_tokens: PositiveInt = 8192
    """Longest answer."""
    concurrency: PositiveInt = 64
    """Requests in flight at most; it starts low, grows while the endpoint keeps up and halves when it is overloaded."""
    timeout: PositiveFloat = 600.0
    """Seconds a question may take in all; reasoning answers take minutes."""
    store: UserPath = "runs/teacher_answers.sqlite"
    """Where answers are kept, shared by all runs: nothing is asked twice."""
    max_calls: PositiveInt | None = None
    """Stop (exit code 3) before asking more often than this; null for no cap."""
    max_usd: NonNegativeFloat | None = None
    """Stop (exit code 3) before spending more than this; needs `price`; null for no cap."""
    price: PriceSection | None = None
    """What it charges; null counts tokens only."""

    @model_validator(mode="after")
    def _a_cap_needs_a_price(self):
        if self.max_usd is not None and self.price is None:
            raise ValueError("max_usd needs a price: give price: {prompt: …, completion: …}")
        return self


class OpenAITeacher(EndpointSection, _LiveTeacher):
    """A teacher behind an OpenAI-compatible endpoint. Answers are kept: nothing is asked twice."""

    type: Literal["openai"] = "openai"
    instruction: str | None = "from parts"
    """System prompt for rows without one of their own: `from parts` writes it from the parts, null sends the policy's
    own instruction if it has one, any other text is sent as it is."""
    examples: tuple[Example, ...] = Field(default=(), strict=False)
    """Worked examples put before each question."""
    max_image_pixels: PositiveInt = 1048576
    """Larger pictures are scaled down to this many pixels before they are sent; others go as they were read."""


class LLMJudge(EndpointSection):
    """A model that says whether a free-text answer means the same as an accepted one."""

    temperature: NonNegativeFloat = 0.0
    """Sampling temperature."""
    max_tokens: PositiveInt = 512
    """Longest verdict."""


class DatasetTeacher(Section):
    """Teacher answers from the data's own `teacher_response` column: alignment without an endpoint."""

    type: Literal["dataset"]


class EmbeddedTeacher(_LiveTeacher):
    """A picture world's oracle, served over HTTP on 127.0.0.1 while the stage runs."""

    type: Literal["embedded"]
    world: Literal["shapes"] = "shapes"
    """The world whose pictures it can read."""
    variant: Literal["exact", "weak_perception", "weak_reasoning", "text_only"] = "exact"
    """How good it is: faultless, sees badly, reasons badly, or never sees the picture."""


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
