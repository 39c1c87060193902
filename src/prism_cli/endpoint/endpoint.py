"""An OpenAI-compatible endpoint as a value: address, sampling, limits, caps, price and store."""

from pathlib import Path
from typing import NamedTuple, Self

from prism_cli.endpoint.budget import Caps, Price

# The model's name where none is given and nobody asks the endpoint for it.
UNNAMED = "the model it serves"


class Sampling(NamedTuple):
    """Sampling of an endpoint's answers.

    Attributes:
        temperature: Sampling temperature.
        max_tokens: Longest answer.
    """

    temperature: float = 1.0
    max_tokens: int = 8192


class Limits(NamedTuple):
    """Limits on the load of an endpoint.

    Attributes:
        concurrency: Most requests at a time; it starts lower and adapts.
        timeout: Seconds a try may take in all.
        attempts: Most answers to one question, usable or not.
        max_image_pixels: Larger pictures are scaled down to this before they are sent; None sends them as read.
    """

    concurrency: int = 64
    timeout: float = 600.0
    attempts: int = 3
    max_image_pixels: int | None = None


class Endpoint(NamedTuple):
    """One model behind an OpenAI-compatible endpoint.

    Attributes:
        url: Base URL, such as http://127.0.0.1:8000/v1; None where only kept answers are read.
        model: The model to ask for; None until the endpoint has said which one it serves.
        name: The name its answers are kept under, or None for the model's.
        key_env: Name of the environment variable that holds the key.
        sampling: How it writes.
        limits: How hard it is pressed.
        caps: How often it may be asked, and what that may cost.
        price: What it charges, or None where that is not known.
        store: The file its answers are kept in; None for one beside the run's folder.
    """

    url: str | None
    model: str | None
    name: str | None = None
    key_env: str = "OPENAI_API_KEY"
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    caps: Caps = Caps()
    price: Price | None = None
    store: Path | None = None

    @property
    def served_name(self) -> str:
        """The model, or words for the one that the endpoint serves."""
        return self.model or UNNAMED

    def with_attempts(self, attempts: int) -> Self:
        """The same, with another number of answers to one question."""
        return self._replace(limits=self.limits._replace(attempts=attempts))

    def __str__(self) -> str:
        return f"{self.served_name} at {self.url}, key from ${self.key_env}"
