"""What the pods of a Job that has ended said last, where no watch has told of it in time.

A Job and its pods come over different watches, and how a stage ended is in a pod: its words, or that it is gone with
them. The watch is waited for a little; then the job's pods are listed once. The Job controller ends a Job for what it
has read of its pods, so a list that begins after the Job's end was seen has all that anybody will ever know. No clock
of another machine is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from finetune_operator import names
from finetune_operator.control.api_client import Api
from finetune_operator.control.cache import Cache, Name, name_of
from finetune_operator.control.relist import relist
from finetune_operator.control.resources import POD
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10.0  # mostly the pod's end is seen before the Job's; a watch that is later than this is in trouble

State = tuple[str, str]  # uid and version of a Job


class LastWords:
    """For each FineTuneJob since when words are missing, and after which states of its Jobs its pods were listed."""

    def __init__(self, api: Api, cache: Cache, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._since: dict[Name, float] = {}
        self._read: dict[Name, frozenset[State]] = {}

    def unread(self, name: Name, jobs: Iterable[Manifest]) -> frozenset[str]:
        """The uids of those of its Jobs of whose pods only the watch has told since they are as they are."""
        read = self._read.get(name, frozenset())
        return frozenset(uid for uid, version in _states(jobs) if (uid, version) not in read)

    async def seek(self, name: Name, jobs: Iterable[Manifest]) -> float:
        """Lists the pods when the watch has had its time; returns for how many seconds it still has, 0 after a list.

        Raises ApiError.
        """
        left = self._since.setdefault(name, self._clock()) + GRACE_SECONDS - self._clock()
        if left > 0:
            return left
        states = _states(jobs)
        label = names.cut(name[1])
        pods = self._api.list(POD, name[0], f"{names.LABEL_JOB}={label}")
        news, gone = await relist(
            self._cache, POD, pods, lambda: [name_of(pod) for pod in self._cache.pods(name[0], label)]
        )
        logger.info("job=%s/%s last_words=read news=%d gone=%d", *name, news, len(gone))
        self._read[name] = states
        self._since.pop(name)
        return 0.0

    def found(self, name: Name) -> None:
        """Nothing is missing."""
        self._since.pop(name, None)

    def forget(self, name: Name) -> None:
        """The job is gone."""
        self._since.pop(name, None)
        self._read.pop(name, None)


def _states(jobs: Iterable[Manifest]) -> frozenset[State]:
    return frozenset((job["metadata"]["uid"], job["metadata"].get("resourceVersion", "")) for job in jobs)
