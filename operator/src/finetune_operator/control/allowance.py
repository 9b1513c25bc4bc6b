"""So many at once, then one in so many seconds, for each of many keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

KEYS = 10_000  # about 1 MiB; who was heard of longest ago is forgotten first


class Allowance(Generic[Key]):
    """A token bucket a key."""

    def __init__(self, at_once: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = at_once
        self._seconds = seconds
        self._clock = clock
        self._left: dict[Key, tuple[float, float]] = {}  # tokens and when they were counted, oldest first

    def take(self, key: Key) -> bool:
        """Whether one more is allowed now; it counts if it is."""
        now = self._clock()
        left, since = self._left.pop(key, (float(self._at_once), now))
        left = min(float(self._at_once), left + (now - since) / self._seconds)
        allowed = left >= 1
        self._left[key] = (left - allowed, now)
        if len(self._left) > KEYS:
            self._left.pop(next(iter(self._left)))
        return allowed
