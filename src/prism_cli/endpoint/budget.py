"""Budget of an endpoint: caps on calls and dollars, and the count of both."""

import math
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from prism_cli.errors import BudgetError, RecipeError


class Price(NamedTuple):
    """Price of an endpoint's tokens.

    Attributes:
        prompt: US dollars a million prompt tokens.
        completion: US dollars a million completion tokens.
    """

    prompt: float
    completion: float

    def usd(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        """Dollars for this many tokens, or None where the endpoint did not count them."""
        if prompt_tokens is None or completion_tokens is None:
            return None
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


class Caps(NamedTuple):
    """The most that may be asked and spent.

    Attributes:
        max_calls: Most calls, or None.
        max_usd: Most dollars, or None; needs a price.
    """

    max_calls: int | None = None
    max_usd: float | None = None


class Budget:
    """Counts calls, tokens and dollars, and refuses the call that would exceed a cap. Safe from several threads.

    A call is what an endpoint bills: a reply that came, usable or not, and one that was not waited for any longer. A
    request that failed otherwise (rate limit, server error, lost connection) is none.

    Args:
        caps: Most calls and dollars. A call's cost is known only when it has ended; until then the most it can cost is
            set aside, so the cap on dollars holds where the endpoint holds max_tokens.
        price: Needed for a cap on dollars; without it no dollars are counted.
        spent: The `summary` of earlier starts, on top of which is counted.
        run: Whose spending it is, as noted with each answer kept.

    Raises:
        RecipeError: a cap on dollars without a price.
    """

    def __init__(
        self,
        caps: Caps = Caps(),  # noqa: B008  (immutable)
        price: Price | None = None,
        spent: Mapping[str, Any] | None = None,
        run: str = "",
    ):
        if caps.max_usd is not None and price is None:
            raise RecipeError("max_usd is given without a price", "give {price}, of a million tokens", ("price",))
        self.run = run
        self._max_calls, self._max_usd, self.price = caps.max_calls, caps.max_usd, price
        before = {name: value or 0 for name, value in (spent or {}).items()}
        self._calls, self._cached = before.get("calls", 0), before.get("cached", 0)
        self._prompt_tokens = before.get("prompt_tokens", 0)
        self._completion_tokens = before.get("completion_tokens", 0)
        self._usd = before.get("usd", 0.0)
        self._under_way, self._set_aside, self._dearest = 0, 0.0, 0.0
        self._lock = threading.Lock()

    def reserve(self, prompt_tokens: int = 0, completion_tokens: int = 0) -> float | None:
        """Sets aside what a call that is about to be made may take; `settle` or `release` must follow.

        Args:
            prompt_tokens: The most it can take.
            completion_tokens: The most it can take.

        Returns:
            The dollars set aside; None if it fits only should calls under way cost less than they may: ask again then.

        Raises:
            BudgetError: the call could exceed a cap. Nothing is counted.
        """
        with self._lock:
            # Where a provider counts more than was thought possible, its dearest call is the better guess.
            most = max(self._usd_for(prompt_tokens, completion_tokens) or 0.0, self._dearest)
            self._refuse(most)
            calls, usd = self._calls + self._under_way, self._usd + self._set_aside + most
            if calls >= (self._max_calls or math.inf) or (self._max_usd is not None and usd > self._max_usd):
                return None
            self._under_way += 1
            self._set_aside += most
            return most

    def release(self, set_aside: float = 0.0) -> None:
        """Ends a reserved call that was none; gives back what `reserve` set aside."""
        with self._lock:
            self._under_way -= 1
            self._set_aside -= set_aside

    def settle(self, prompt_tokens: int | None, completion_tokens: int | None, set_aside: float = 0.0) -> float | None:
        """Ends a reserved call and counts it; where the endpoint did not count tokens, at what `reserve` set aside.

        Returns:
            The dollars booked, or None without a price.
        """
        with self._lock:
            self._under_way -= 1
            self._set_aside -= set_aside
            self._calls += 1
            self._prompt_tokens += prompt_tokens or 0
            self._completion_tokens += completion_tokens or 0
            if self.price is None:
                return None
            cost = self._usd_for(prompt_tokens, completion_tokens)
            booked = set_aside if cost is None else cost
            self._usd += booked
            self._dearest = max(self._dearest, booked)
            return booked

    def book(self, prompt_tokens: int | None, completion_tokens: int | None, usd: float | None) -> None:
        """Counts an answer that was not reserved, at a price of its own: one of a batch. Refuses nothing."""
        with self._lock:
            self._calls += 1
            self._prompt_tokens += prompt_tokens or 0
            self._completion_tokens += completion_tokens or 0
            self._usd += usd or 0.0

    def reuse(self) -> None:
        """Counts an answer that cost no call."""
        with self._lock:
            self._cached += 1

    def summary(self) -> dict[str, int | float | None]:
        """Calls, cached answers, tokens and dollars (None without a price) so far."""
        with self._lock:
            return {
                "calls": self._calls,
                "cached": self._cached,
                "prompt_tokens": self._prompt_tokens,
                "completion_tokens": self._completion_tokens,
                "usd": None if self.price is None else round(self._usd, 6),
            }

    def _usd_for(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        return None if self.price is None else self.price.usd(prompt_tokens, completion_tokens)

    def _refuse(self, most: float) -> None:
        if self._max_calls is not None and self._calls >= self._max_calls:
            raise BudgetError(
                f"the budget of {self._max_calls} calls is used up",
                "raise {max_calls} and run the same command again: the answers paid for are kept",
                ("max_calls",),
            )
        if self._max_usd is not None and self._usd + most > self._max_usd:
            raise BudgetError(
                f"${self._usd:.4f} of the budget of ${self._max_usd:g} are spent, and the next call could cost "
                f"${most:.4f}",
                "raise {max_usd} and run the same command again: the answers paid for are kept; a smaller {max_tokens} "
                "makes the most that a call can cost smaller",
                ("max_usd", "max_tokens"),
            )
