"""What batches cost, and how much of them may be submitted."""

from collections.abc import Callable
from typing import NamedTuple

from prism_cli.endpoint.batch_ledger import Ledger
from prism_cli.endpoint.budget import Price
from prism_cli.endpoint.requests import EndpointRequest

# What a batch costs of the direct calls' price, at OpenAI and those who copied it.
PRICE_SHARE = 0.5


class Terms(NamedTuple):
    """What batches cost, and what may be spent on them.

    Attributes:
        price: What the batch endpoint charges, or None: then no dollars are counted.
        max_calls: Most calls of the run, or None.
        max_usd: Most dollars of the run, or None; needs a price.
        most_prompt_tokens: No request has more prompt tokens than this says of it.
    """

    price: Price | None = None
    max_calls: int | None = None
    max_usd: float | None = None
    most_prompt_tokens: Callable[[EndpointRequest], int] = lambda request: 0


class Room:
    """What may still be submitted under the caps; a request counts with the most it can cost.

    Attributes:
        refused: Why the last request was refused, or None.
    """

    def __init__(self, ledger: Ledger, terms: Terms, max_tokens: int):
        self._terms, self._max_tokens = terms, max_tokens
        self.refused: str | None = None
        self._calls = sum(submission.answered for submission in ledger.submissions)
        self._usd = sum(submission.usd for submission in ledger.submissions)

    def take(self, request: EndpointRequest) -> bool:
        """Counts a request, unless it would exceed a cap."""
        terms, usd = self._terms, 0.0
        if terms.price is not None and terms.max_usd is not None:
            usd = terms.price.usd(terms.most_prompt_tokens(request), self._max_tokens) or 0.0
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
