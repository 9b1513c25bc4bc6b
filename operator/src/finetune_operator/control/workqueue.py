"""A queue of keys: each at most once in it, never worked on twice at the same time, failures later and later.

First come, first served. In a burst that is fair: what follows from a first pass waits behind the first passes of the
others, and all of it that happens meanwhile is one more pass.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")

FIRST_BACKOFF = 0.5  # seconds
LAST_BACKOFF = 300.0  # seconds; a job that cannot be helped costs one pass in five minutes


class WorkQueue(Generic[Key]):
    """Bounded concurrency. `work(key)` is called for every key that was added; an exception means: again later."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[Key, float] = {}  # waiting keys -> when they were added; in this order
        self._running: dict[Key, float] = {}  # -> when the pass began
        self._again: dict[Key, float] = {}  # added while running -> when
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def add(self, key: Key) -> None:
        """A pass over the key is wanted now. Adding what already waits changes nothing; of what is being worked on
        one more pass follows."""
        if key in self._running:
            self._again.setdefault(key, self._clock())
            return
        self._since.setdefault(key, self._clock())
        self._wake.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """A pass is wanted in so many seconds. Of several delays of a key the earliest counts."""
        loop = asyncio.get_running_loop()
        pending = self._timers.get(key)
        if pending and pending.when() <= loop.time() + seconds:
            return
        if pending:
            pending.cancel()
        self._timers[key] = loop.call_later(seconds, self._fire, key)

    def retry(self, key: Key, at_least: float = 0.0) -> float:
        """A pass failed: again after a delay that doubles with every failure in a row. Returns the delay."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(LAST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures, 20)) * random.uniform(0.8, 1.2)
        delay = max(at_least, delay)
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """The next failure starts with the shortest delay again."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """The object is gone: no delayed pass any more."""
        self._failures.pop(key, None)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    @property
    def depth(self) -> int:
        return len(self._since)

    def oldest_seconds(self) -> float:
        """How long the longest waiting or longest running key has been waiting or running."""
        starts = [next(iter(self._since.values()), None), next(iter(self._running.values()), None)]
        return max((self._clock() - start for start in starts if start is not None), default=0.0)

    async def run(self, work: Callable[[Key], Awaitable[None]], concurrency: int) -> None:
        """Works until close(); returns when the passes that were under way have ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._worker(work))

    def close(self) -> None:
        """No pass begins any more."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._wake.set()

    def _fire(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def _worker(self, work: Callable[[Key], Awaitable[None]]) -> None:
        while (key := await self._next()) is not None:
            try:
                await work(key)
            finally:
                self._done(key)

    async def _next(self) -> Key | None:
        while not self._closed:
            if self._since:
                key = next(iter(self._since))
                del self._since[key]
                self._running[key] = self._clock()
                return key
            self._wake.clear()
            await self._wake.wait()
        return None

    def _done(self, key: Key) -> None:
        self._running.pop(key, None)
        since = self._again.pop(key, None)
        if since is not None:
            self._since[key] = since
            self._wake.set()
