"""How often an endpoint may be asked and what that may cost."""

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from prism_cli.errors import BudgetError, RecipeError


class Price(NamedTuple):
    """What an endpoint charges.

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


class Budget:
    """Counts calls, tokens and dollars, and refuses the call that would exceed a cap. Safe from several threads.

    A call is a reply that came, usable or not: what an endpoint bills. A request that failed (rate limit, server error,
    lost connection, timeout) is none.

    Args:
        max_calls: Most calls, or None.
        max_usd: Most dollars, or None. A call's cost is known only when it has ended, so each one under way is taken to
            cost as much as the dearest so far; only the very first calls, all under way at once, can overshoot.
        price: Needed for `max_usd`; without it no dollars are counted.
        spent: The `summary` of an earlier start, on top of which is counted.

    Raises:
        RecipeError: `max_usd` without a price.
    """

    def __init__(
        self,
        max_calls: int | None = None,
        max_usd: float | None = None,
        price: Price | None = None,
        spent: Mapping[str, Any] | None = None,
    ):
        if max_usd is not None and price is None:
            raise RecipeError("max_usd is given without a price", hint="give the price of a million tokens")
        self._max_calls, self._max_usd, self._price = max_calls, max_usd, price
        before = {name: value or 0 for name, value in (spent or {}).items()}
        self._calls, self._cached = before.get("calls", 0), before.get("cached", 0)
        self._prompt_tokens = before.get("prompt_tokens", 0)
        self._completion_tokens = before.get("completion_tokens", 0)
        self._under_way, self._usd, self._dearest = 0, before.get("usd", 0.0), 0.0
        self._lock = threading.Lock()

    def reserve(self) -> None:
        """Counts a call that is about to be made; `settle` or `release` must follow.

        Raises:
            BudgetError: the call would exceed a cap. Nothing is counted.
        """
        with self._lock:
            if self._max_calls is not None and self._calls >= self._max_calls:
                raise BudgetError(
                    f"the budget of {self._max_calls} calls is used up",
                    hint="raise max_calls and run the same command again: the answers paid for are kept",
                )
            if self._max_usd is not None and self._usd + self._dearest * (self._under_way + 1) > self._max_usd:
                raise BudgetError(
                    f"${self._usd:.4f} are spent and the next call could exceed the budget of ${self._max_usd:g}",
                    hint="raise max_usd and run the same command again: the answers paid for are kept",
                )
            self._calls += 1
            self._under_way += 1

    def release(self) -> None:
        """Ends a reserved call that brought no reply; it does not count."""
        with self._lock:
            self._under_way -= 1
            self._calls -= 1

    def settle(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Ends a reserved call and counts its tokens.

        Raises:
            BudgetError: dollars are capped but the endpoint does not report tokens.
        """
        with self._lock:
            self._under_way -= 1
            self._prompt_tokens += prompt_tokens or 0
            self._completion_tokens += completion_tokens or 0
            if self._price is None:
                return
            cost = self._price.usd(prompt_tokens, completion_tokens)
            if cost is None and self._max_usd is not None:
                raise BudgetError(
                    "the endpoint does not report tokens, so max_usd can't be held",
                    hint="cap the calls instead: max_calls",
                )
            self._usd += cost or 0.0
            self._dearest = max(self._dearest, cost or 0.0)

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
                "usd": None if self._price is None else round(self._usd, 6),
            }
