"""Kept answers of an endpoint: which are usable, and what would be sent for the others; asks nobody."""

from collections.abc import Callable, Sequence
from typing import Any

from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.replies import problem
from prism_cli.endpoint.requests import EndpointAnswer, EndpointRequest, describe, wire_messages
from prism_cli.endpoint.store import AnswerStore, StoredAnswer

Check = Callable[[str], str | None]


class KeptAnswers:
    """The answers of an endpoint in a store.

    Args:
        endpoint: Whose.
        store: Where they are kept.
        check: Says what is wrong with an answer's form, or None.

    Attributes:
        endpoint: As given.
        store: As given.
        model: The model that is asked for.
        name: The name its answers are kept under.
        limit_name: The name under which the endpoint knows the longest answer.
    """

    def __init__(self, endpoint: Endpoint, store: AnswerStore, check: Check = lambda text: None):
        self.endpoint, self.store, self.check = endpoint, store, check
        self.model = endpoint.served_name
        self.name = endpoint.name or self.model
        self.limit_name = "max_tokens"

    def key(self, request: EndpointRequest) -> str:
        """The key under which the answers to a request are kept."""
        return describe(request, self.endpoint)[0]

    def description(self, request: EndpointRequest) -> str:
        """The JSON the key is the SHA-256 of."""
        return describe(request, self.endpoint)[1]

    def body(self, request: EndpointRequest) -> dict[str, Any]:
        """Exactly what is sent for a request: the JSON body of the call."""
        return {
            "model": self.model,
            "messages": wire_messages(request, self.endpoint.limits.max_image_pixels),
            "temperature": self.endpoint.sampling.temperature,
            self.limit_name: self.endpoint.sampling.max_tokens,
        }

    def kept(self, request: EndpointRequest) -> EndpointAnswer | None:
        """The usable answer in the store, or None; counts nothing."""
        return self.usable(self.store.answers(self.key(request)))

    def usable(self, answers: Sequence[StoredAnswer]) -> EndpointAnswer | None:
        """The first usable one of the answers under a key, or None."""
        for answer in answers:
            if self.problem(answer) is None:
                tokens = answer.prompt_tokens, answer.completion_tokens
                return EndpointAnswer(answer.text, answer.model, *tokens, cached=True)
        return None

    def problem(self, answer: StoredAnswer) -> str | None:
        """Why an answer from the store can't be used, as a `NoAnswerError.reason`, or None."""
        fault = self.fault(answer)
        return fault[0] if fault else None

    def fault(self, answer: StoredAnswer) -> tuple[str, str] | None:
        """The same with its details, or None."""
        return problem(answer, self.endpoint.sampling.max_tokens, self.check)
