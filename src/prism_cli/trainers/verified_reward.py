"""Rewards by rule: computed once a generation batch, served to TRL under their names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prism_cli.responses import Response

# Called with the parsed response, the data row and the completion's length in tokens; None leaves it unscored, which
# is never the same as wrong.
Rule = Callable[[Response, dict[str, Any], int], float | None]
# One response with its row and its length in tokens.
Scored = tuple[Response, dict[str, Any], int]


class VerifiedReward:
    """Rewards of one generation batch, computed once from the parsed responses and served to TRL by name.

    Args:
        rules: Name → rule, each in its own unit.
        weights: Name → weight in the reward.
        prepare: Called with the complete batch before the rules see its first response: requests at once what they
            need.
        by_model: A model takes part, which may leave responses unscored.

    Attributes:
        values: Name → reward of each response of the last batch.
    """

    def __init__(
        self,
        rules: dict[str, Rule],
        weights: Mapping[str, float],
        prepare: Callable[[list[Scored]], None] = lambda batch: None,
        by_model: bool = False,
    ):
        self.rules, self.weights, self.prepare, self.by_model = rules, weights, prepare, by_model
        self.values: dict[str, list[float | None]] = {name: [] for name in rules}

    def score(self, responses: Sequence[Response], rows: Sequence[dict[str, Any]], lengths: Sequence[int]) -> None:
        """Computes every rule on every response.

        Args:
            responses: (N,) parsed.
            rows: (N,) their rows.
            lengths: (N,) tokens.
        """
        batch = list(zip(responses, rows, lengths, strict=True))
        self.prepare(batch)
        self.values = {name: [rule(*one) for one in batch] for name, rule in self.rules.items()}

    def functions(self) -> list[Callable[..., list[float | None]]]:
        """One TRL reward callable a rule; its name is the rule's."""
        return [self._serve(name) for name in self.rules]

    def _serve(self, name: str) -> Callable[..., list[float | None]]:
        def reward(**columns: Any) -> list[float | None]:
            return self.values[name]

        reward.__name__ = name
        return reward
