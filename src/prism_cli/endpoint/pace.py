"""Pace of requests: how many may be under way; it grows while the endpoint keeps up, and yields when it does not.

Additive growth, halving when overloaded (as in TCP), one pause for all where the endpoint asks for one. Only the
monotonic clock is read.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from statistics import median

FIRST_LIMIT = 4
LONGEST_PAUSE = 600.0
# A row of failures ends the client only when it also lasted this long: a server that restarts needs some seconds.
PATIENCE = 30.0
# A rate limit is no fault: one a minute has let somebody through long before this.
PATIENCE_WHEN_LIMITED = 300.0
# Below this a latency is this machine's own noise, not the endpoint's load.
NOISE = 0.25
_LOGGER = logging.getLogger(__name__)


class Pace:
    """Turns for requests. All of it happens on one event loop.

    Args:
        most: Most requests at a time.
        name: The endpoint, for what is said of long pauses.

    Attributes:
        limit: Most requests at a time, for now.
    """

    def __init__(self, most: int, name: str):
        self._most, self._name = most, name
        self.limit = min(FIRST_LIMIT, most)
        self._step = FIRST_LIMIT
        self._under_way, self._was_full = 0, False
        self._changed, self._stopped = asyncio.Condition(), asyncio.Event()
        self._seconds: list[float] = []
        self._best = float("inf")
        self._held_until = self._halved_at = float("-inf")
        self._failures = self._waves = 0
        self._row_began = self._wave_at = float("-inf")
        self._enough = 0
        self._is_limited = self._said_limited = False

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Waits until a request may be sent; holds its place meanwhile. Gives the time it starts."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._under_way < self.limit)
            self._under_way += 1
            self._was_full |= self._under_way >= self.limit
        try:
            while (pause := self._held_until - time.monotonic()) > 0 and not self._stopped.is_set():
                await self.sleep(pause)
            yield time.monotonic()
        finally:
            async with self._changed:
                self._under_way -= 1
                self._changed.notify(max(0, self.limit - self._under_way))

    def succeeded(self, started: float) -> None:
        """A reply came, to a request sent at `started`."""
        self._failures = self._waves = 0
        self._is_limited = False
        self._seconds.append(time.monotonic() - started)
        if len(self._seconds) < max(8, self.limit):
            return
        typical = median(self._seconds)
        self._best = min(self._best, typical)
        if self._was_full and typical <= max(2 * self._best, NOISE):
            self.limit = min(self._most, self.limit + self._step)
        self._seconds, self._was_full = [], False

    def failed(self, started: float, overloaded: bool = False, retry_after: float | None = None) -> None:
        """No reply came to a request sent at `started`.

        Args:
            started: What `turn` gave.
            overloaded: Whether it was for too many requests: the limit halves, once for all that were under way.
            retry_after: Seconds the endpoint asks everyone to wait.
        """
        now = time.monotonic()
        if not self._failures:
            self._row_began, self._enough = now, max(8, self.limit)
        self._failures += 1
        if started > self._wave_at:
            self._waves, self._wave_at = self._waves + 1, now
            # One failure alone may be chance. After more, nobody's request is sent before a pause that grows.
            if self._waves > 1:
                self._hold(min(8.0, 0.5 * 2 ** (self._waves - 2)) * random.uniform(0.5, 1))
        if overloaded:
            self._is_limited = True
            self._say_limited()
        if overloaded and started > self._halved_at:
            self.limit, self._step, self._halved_at = max(1, self.limit // 2), 1, now
            self._seconds = []
        if retry_after is not None:
            if retry_after >= 60:
                cut = f" (more than {LONGEST_PAUSE:g} s is not waited)" if retry_after > LONGEST_PAUSE else ""
                _LOGGER.warning("%s asks for a pause of %g s%s", self._name, retry_after, cut)
            self._hold(min(retry_after, LONGEST_PAUSE))

    @property
    def hopeless(self) -> str | None:
        """Time in which nothing but failures came, as text, once that is reason to give up."""
        lasted = time.monotonic() - self._row_began
        patience = PATIENCE_WHEN_LIMITED if self._is_limited else PATIENCE
        if self._failures < self._enough or not self._failures or lasted < patience:
            return None
        return f"{self._failures} requests in a row failed for {lasted:.0f} s"

    async def sleep(self, seconds: float) -> None:
        """Waits, but not after `stop`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    def stop(self) -> None:
        """Ends all pauses, now and later: what waits for its turn gets it, to learn why it is not sent."""
        self._stopped.set()

    def _say_limited(self) -> None:
        if not self._said_limited:
            _LOGGER.warning(
                "%s limits how many requests it takes: they wait, for up to %g s without an answer",
                self._name,
                PATIENCE_WHEN_LIMITED,
            )
        self._said_limited = True

    def _hold(self, seconds: float) -> None:
        self._held_until = max(self._held_until, time.monotonic() + seconds)
