"""A periodic list of everything: it prunes what vanished unseen and asks for a pass over every job.

kopf lists again after a gap in a watch, but never says what is missing from the list. And time does something
too: a job may have become due.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

from finetune_operator.control.api_client import Api
from finetune_operator.control.cache import Cache, Name, name_of
from finetune_operator.control.metrics import RESYNC_TIME, WATCH_MISSED
from finetune_operator.control.relist import relist
from finetune_operator.control.resources import FINE_TUNE_JOB, Resource
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)

SECOND_LIST_SECONDS = 20.0  # what was deleted between our first list and the start of the watches is found then
RETRY_SECONDS = 5.0


class Resync:
    """Lists all watched kinds. `silent` names those whose watch told nothing, twice in a row, while things changed.

    Once may be a change that is still on its way.
    """

    def __init__(
        self,
        api: Api,
        cache: Cache,
        enqueue: Callable[[Name], None],
        *,
        watched: Sequence[Resource],
        namespaces: Sequence[str],
        seconds: float,
    ) -> None:
        self._api = api
        self._cache = cache
        self._enqueue = enqueue
        self._watched = watched
        self._namespaces: Sequence[str | None] = namespaces or (None,)
        self._seconds = seconds
        self._told: dict[str, int] = {}  # plural -> watch events until the last list
        self._suspects: set[str] = set()
        self.silent: set[str] = set()
        self.finished_at: float | None = None  # monotonic time of the last complete list

    async def once(self, *, first: bool = False) -> None:
        """One list of every kind. Raises ApiError; what was listed until then counts."""
        start = time.monotonic()
        suspects: set[str] = set()
        for resource in self._watched:
            missed = await self._relist(resource)
            told = self._cache.told[resource.plural]
            if missed and not first and told == self._told.get(resource.plural):
                suspects.add(resource.plural)
                WATCH_MISSED.labels(resource.plural).inc(missed)
            self._told[resource.plural] = told
        self.silent = suspects & self._suspects
        self._suspects = suspects
        self.finished_at = time.monotonic()
        RESYNC_TIME.set(time.time())
        names = self._cache.names(FINE_TUNE_JOB)
        for name in names:
            self._enqueue(name)
        logger.info(
            "resync=done jobs=%d silent=%s seconds=%.2f", len(names), sorted(suspects), self.finished_at - start
        )

    async def forever(self) -> None:
        """Lists again and again, the first time soon. An error is logged, and the next attempt is sooner."""
        wait = min(SECOND_LIST_SECONDS, self._seconds)
        while True:
            await asyncio.sleep(wait)
            try:
                await self.once()
                wait = self._seconds
            except Exception as error:
                logger.warning("resync=failed retry_in=%.0f error=%r", RETRY_SECONDS, str(error))
                wait = min(RETRY_SECONDS, self._seconds)

    async def _relist(self, resource: Resource) -> int:
        """Returns how many changes were news."""
        news, gone = await relist(self._cache, resource, self._listing(resource), lambda: self._cache.names(resource))
        for body in gone:
            job = name_of(body) if resource is FINE_TUNE_JOB else self._cache.job_of(body)
            if job:
                self._enqueue(job)
        if gone:
            logger.info("resync=pruned resource=%s count=%d", resource.plural, len(gone))
        return news + len(gone)

    async def _listing(self, resource: Resource) -> AsyncIterator[Manifest]:
        for namespace in self._namespaces:
            async for body in self._api.list(resource, namespace):
                yield body
