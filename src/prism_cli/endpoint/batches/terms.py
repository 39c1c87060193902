"""Terms of batches: what they cost, and how much of them may be submitted."""

from prism_cli.endpoint.budget import Budget, Caps, Price
from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.requests import EndpointRequest, most_prompt_tokens

# What a batch costs of the direct calls' price, at OpenAI and those who copied it.
PRICE_SHARE = 0.5


def at_batch_price(endpoint: Endpoint) -> Endpoint:
    """The endpoint with what its batches cost."""
    price = endpoint.price
    return endpoint._replace(price=price and Price(price.prompt * PRICE_SHARE, price.completion * PRICE_SHARE))


def most_usd(request: EndpointRequest, endpoint: Endpoint) -> float | None:
    """The most a request can cost, or None where no price is known.

    Raises:
        DataError: a picture can't be opened.
    """
    if endpoint.price is None:
        return None
    return endpoint.price.usd(
        most_prompt_tokens(request, endpoint.limits.max_image_pixels), endpoint.sampling.max_tokens
    )


class Room:
    """Room left under the caps; a request counts with the most it can cost.

    Args:
        caps: The most that the run may ask and spend.
        budget: What the run has spent so far, in batches and otherwise; nothing is under way.

    Attributes:
        refused: Why the last request was refused, and the cap's name; None if it was not.
    """

    def __init__(self, caps: Caps, budget: Budget):
        self._caps = caps
        self.refused: tuple[str, str] | None = None
        spent = budget.summary()
        self._calls, self._usd = spent["calls"] or 0, spent["usd"] or 0.0

    def take(self, most_usd: float | None) -> bool:
        """Counts a request, unless it would exceed a cap.

        Args:
            most_usd: The most it can cost, or None where no price is known.
        """
        caps, usd = self._caps, most_usd or 0.0
        if caps.max_calls is not None and self._calls >= caps.max_calls:
            self.refused = f"the budget of {caps.max_calls} calls is used up", "max_calls"
        elif caps.max_usd is not None and self._usd + usd > caps.max_usd:
            spent = f"${self._usd:.4f} of the budget of ${caps.max_usd:g} are spent or submitted"
            self.refused = f"{spent}, and the next request could cost ${usd:.4f}", "max_usd"
        else:
            self._calls, self._usd = self._calls + 1, self._usd + usd
            return True
        return False
