"""One life of the operator on a real API server, in this process and without its watches.

It reads everything and passes over the job "travel": by an API client of the test's own (one that dies, or disturbs)
and by the test's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from finetune_operator.control.api_client import Api, load_configuration
from finetune_operator.control.apply import Applier
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.last_words import LastWords
from finetune_operator.control.progress import ProgressReports
from finetune_operator.control.reconcile import Reconciler
from finetune_operator.control.resources import WATCHED
from finetune_operator.control.resync import Resync
from finetune_operator.control.workqueue import WorkQueue
from finetune_operator.decide import decide
from finetune_operator.settings import Settings
from tests.cluster.control_plane import ControlPlane
from tests.lives import Death

Client = TypeVar("Client", bound=Api)
Clock = Callable[[], datetime]
FOR_EVER = float("inf")


class MortalApi(Api):
    """Dies right after the API server took a number of writes, before anybody hears of the last one."""

    writes_left = FOR_EVER
    writes = 0

    async def request(self, method: str, path: str, label: str, **rest: Any) -> dict[str, Any]:
        answer = await super().request(method, path, label, **rest)
        if method != "GET":
            self.writes += 1
            self.writes_left -= 1
            if self.writes_left <= 0:
                raise Death
        return answer


@dataclass(frozen=True)
class Life(Generic[Client]):
    """`read` lists everything, `pass_over` decides on the job and writes."""

    api: Client
    cache: Cache
    read: Callable[[], Awaitable[object]]
    pass_over: Callable[[], Awaitable[None]]


@asynccontextmanager
async def living(
    plane: ControlPlane,
    namespace: str,
    client: type[Client],
    settings: Settings | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Life[Client]]:
    """A leader that begins, with a client of this kind, and is gone at the end of the block."""
    api = client(await load_configuration(str(plane.kubeconfig_of("operator"))), concurrency=4, timeout=20)
    cache, queue = Cache(), WorkQueue[Name]()
    reconcile = Reconciler(
        cache=cache,
        queue=queue,
        applier=Applier(api, cache, "test"),
        decide=decide,
        settings=settings or Settings(),
        progress=ProgressReports(queue, 10),
        last_words=LastWords(api, cache),
        clock=clock or (lambda: api.clock.now()),
    )
    resync = Resync(api, cache, queue.add, watched=WATCHED, namespaces=[namespace], seconds=300)
    try:
        yield Life(api, cache, lambda: resync.once(first=True), lambda: reconcile((namespace, "travel")))
    finally:
        queue.close()
        await api.close()


def look(
    plane: ControlPlane,
    namespace: str,
    *,
    writes: float = FOR_EVER,
    settings: Settings | None = None,
    clock: Clock | None = None,
) -> int:
    """A leader reads everything and passes over the job until it has nothing to write, or dies after `writes`. Returns
    how many it made."""

    async def live() -> int:
        async with living(plane, namespace, MortalApi, settings, clock) as life:
            life.api.writes_left = writes
            await life.read()
            with suppress(Death):
                before = -1
                while life.api.writes > before:
                    before = life.api.writes
                    await life.pass_over()
            return life.api.writes

    return asyncio.run(live())
