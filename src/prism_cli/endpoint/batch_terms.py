"""What batches cost, and how much of them may be submitted."""

from typing import NamedTuple

from prism_cli.endpoint.budget import Budget, Price
from prism_cli.endpoint.requests import EndpointRequest, Settings, most_prompt_tokens

# What a batch costs of the direct calls' price, at OpenAI and those who copied it.
PRICE_SHARE = 0.5


class Terms(NamedTuple):
    """What batches cost, and what may be spent on them.

    Attributes:
        price: What the batch endpoint charges, or None: then no dollars are counted.
        max_calls: Most calls of the run, or None.
        max_usd: Most dollars of the run, or None; needs a price.
    """

    price: Price | None = None
    max_calls: int | None = None
    max_usd: float | None = None

    def most_usd(self, request: EndpointRequest, settings: Settings) -> float | None:
        """The most a request can cost, or None where no price is known.

        Raises:
            DataError: a picture can't be opened.
        """
        if self.price is None:
            return None
        return self.price.usd(most_prompt_tokens(request, settings.max_image_pixels), settings.max_tokens)


class Room:
    """What may still be submitted under the caps; a request counts with the most it can cost.

    Args:
        terms: The caps.
        budget: What the run has spent so far, in batches and otherwise; nothing is under way.

    Attributes:
        refused: Why the last request was refused, or None.
    """

    def __init__(self, terms: Terms, budget: Budget):
        self._terms = terms
        self.refused: str | None = None
        spent = budget.summary()
        self._calls, self._usd = spent["calls"] or 0, spent["usd"] or 0.0

    def take(self, most_usd: float | None) -> bool:
        """Counts a request, unless it would exceed a cap.

        Args:
            most_usd: The most it can cost, or None where no price is known.
        """
        terms, usd = self._terms, most_usd or 0.0
        if terms.max_calls is not None and self._calls >= terms.max_calls:
            self.refused = f"the budget of {terms.max_calls} calls is used up"
        elif terms.max_usd is not None and self._usd + usd > terms.max_usd:
            self.refused = (
                f"${self._usd:.4f} of the budget of ${terms.max_usd:g} are spent or submitted, and the next request "
                f"could cost ${usd:.4f}"
            )
        else:
            self._calls, self._usd = self._calls + 1, self._usd + usd
            return True
        return False
