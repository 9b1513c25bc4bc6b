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

    def has(self, key: Key) -> bool:
        """Whether one more would be allowed now."""
        return self._count(key) >= 1

    def take(self, key: Key) -> bool:
        """Whether one more is allowed now; it counts if it is."""
        left = self._count(key)
        allowed = left >= 1
        self._left.pop(key, None)
        self._left[key] = (left - allowed, self._clock())
        if len(self._left) > KEYS:
            self._left.pop(next(iter(self._left)))
        return allowed

    def _count(self, key: Key) -> float:
        left, since = self._left.get(key, (float(self._at_once), self._clock()))
        return min(float(self._at_once), left + (self._clock() - since) / self._seconds)
