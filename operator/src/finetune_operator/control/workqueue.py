"""A queue of keys: each at most once in it, never worked on twice at the same time, failures later and later.

First come, first served, but for what can wait: see `postpone`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")

FIRST_BACKOFF = 0.5  # seconds
LAST_BACKOFF = 300.0  # seconds; a job that cannot be helped costs one pass in five minutes
CROWD = 8  # so many keys at once, being worked on or waiting, are a burst
CALM = 0.5  # seconds without a start after which a burst is over
LATEST = 60.0  # seconds that a postponed key waits at most


class WorkQueue(Generic[Key]):
    """Bounded concurrency. `work(key)` is called for every key that was added; an exception means: again later."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[Key, float] = {}  # waiting keys -> when they were added; in this order
        self._running: dict[Key, float] = {}  # -> when the pass began
        self._again: dict[Key, float] = {}  # added while running -> when
        self._late: dict[Key, float] = {}  # postponed keys -> since when
        self._granted: set[Key] = set()  # being worked on after they were postponed
        self._calm_at = clock()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def add(self, key: Key) -> None:
        """A pass over the key is wanted now. Adding what already waits changes nothing; of what is being worked on
        one more pass follows."""
        if key in self._late:
            return
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

    def postpone(self, key: Key) -> bool:
        """The pass over the key has started what it is about, and the rest of it may wait for those that have not.

        Whether it does: that pass shall end here, and the next one follows when no other has started anything for a
        moment. Not twice in a row, and not where so little is going on that all are served at once."""
        now = self._clock()
        burst = len(self._running) + len(self._since) >= CROWD or (bool(self._late) and now < self._calm_at)
        waits = burst and key not in self._granted
        self._calm_at = now + CALM
        if waits:
            self._late[key] = now
            self._wake.set()  # who waits for the next key, without a limit, looks when this one's time has come
        return waits

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
        self._late.pop(key, None)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    @property
    def depth(self) -> int:
        return len(self._since) + len(self._late)

    def oldest_seconds(self) -> float:
        """How long the longest waiting or longest running key has been waiting or running."""
        starts = [next(iter(keys.values()), None) for keys in (self._since, self._late, self._running)]
        return max((self._clock() - start for start in starts if start is not None), default=0.0)

    async def run(self, work: Callable[[Key], Awaitable[None]], concurrency: int) -> None:
        """Works until close(); returns when the passes that were under way have ended."""
        free = asyncio.Semaphore(concurrency)

        async def one(key: Key) -> None:
            try:
                await work(key)
            finally:
                self._done(key)
                free.release()

        async with asyncio.TaskGroup() as group:
            while await free.acquire() and (key := await self._next()) is not None:
                group.create_task(one(key))

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

    async def _next(self) -> Key | None:
        while not self._closed:
            if (key := self._take()) is not None:
                self._running[key] = self._clock()
                return key
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), CALM if self._late else None)
        return None

    def _take(self) -> Key | None:
        now = self._clock()
        late, first = (next(iter(keys), None) for keys in (self._late, self._since))
        if late is not None and (self._late[late] + LATEST <= now or (first is None and now >= self._calm_at)):
            del self._late[late]
            self._granted.add(late)
            return late
        if first is not None:
            del self._since[first]
        return first

    def _done(self, key: Key) -> None:
        self._running.pop(key, None)
        self._granted.discard(key)
        since = self._again.pop(key, None)
        if since is not None and key not in self._late:
            self._since[key] = since
            self._wake.set()
