"""How often a key may ask: a token bucket for each."""

from __future__ import annotations

import time
from collections.abc import Callable


class RateLimit:
    """A key may make `a_minute` requests at once; they come back evenly, as many each minute."""

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = float(a_minute), clock
        self._left: dict[str, tuple[float, float]] = {}
        """Owner -> requests that it could make, and when that was so."""

    def take(self, owner: str) -> float:
        """Count one request; returns 0, or the seconds until one will be taken."""
        now = self._clock()
        left, then = self._left.get(owner, (self._most, now))
        left = min(self._most, left + (now - then) * self._most / 60)
        taken = left >= 1
        self._left[owner] = (left - 1 if taken else left, now)
        return 0.0 if taken else (1 - left) * 60 / self._most
