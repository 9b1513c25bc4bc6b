"""The whole control plane but its sockets, in virtual time before the API server of `tests/api_server.py`: it lives,
dies after a write, and lives again, while the cluster goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

from kubernetes.aio.client import Configuration

from finetune_operator.control.api_client import Api, ApiError, RateLimit
from finetune_operator.control.apply import Applier
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.handlers import take_event
from finetune_operator.control.last_words import LastWords
from finetune_operator.control.progress import ProgressReports
from finetune_operator.control.reconcile import Reconciler
from finetune_operator.control.resources import WATCHED, Resource
from finetune_operator.control.resync import Resync
from finetune_operator.control.server_clock import ServerClock
from finetune_operator.control.workqueue import CROWD, WorkQueue
from finetune_operator.decide import decide
from finetune_operator.plan import Manifest
from tests.api_server import ApiServer
from tests.simulator import START
from tests.virtual_time import run_virtually

STEP = 1.0  # seconds between two moves of the cluster
STILL = 700.0  # so long nothing happens in the end: two relists, and more than the longest delay of the work queue
LONGEST = 40_000.0  # seconds; a life that is not steady by then never is
RELIST = 300.0

NO_ANSWER = ApiError(0, "NoAnswer", "TimeoutError")
FAULTS: dict[str, ApiError] = {
    "throttled": ApiError(429, "TooManyRequests", "slow down", retry_after=3.0),
    "throttled for long": ApiError(429, "TooManyRequests", "slow down", retry_after=60.0),
    "internal": ApiError(500, "InternalError", "etcdserver: leader changed"),
    "unavailable": ApiError(503, "ServiceUnavailable", "apiserver not ready"),
    "conflict": ApiError(409, "Conflict", "the object has been modified"),
    "lost request": NO_ANSWER,
    "lost answer": NO_ANSWER,  # the write was taken
    "late request": NO_ANSWER,  # the write is taken when nobody waits for it any more, and may be dead
    "expired": ApiError(410, "Expired", "the provided continue parameter is too old"),
}
READS, WRITES = ("expired",), ("conflict", "late request")  # faults of these alone
WATCH_FAULTS = ("dropped", "duplicated", "late", "cut")
SLOW = "slow"
BUSY = "busy"  # not a fault: other jobs always wait for their pass
OTHERS: list[Name] = [("team-a", f"other-{number}") for number in range(CROWD)]


class Death(BaseException):
    """SIGKILL, as far as the process itself can tell."""


@dataclass
class Weather:
    """What goes wrong on the way, by a seed. It clears up after `until` seconds: what is lost for ever is no life."""

    kinds: Sequence[str] = ()
    seed: int = 0
    until: float = 600.0
    skew: float = 0.0  # seconds by which the API server's clock is ahead of those of controllers and kubelets
    own_skew: float = 0.0  # by which the operator's own is
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def strikes(self, kinds: Sequence[str], share: float = 0.3) -> str | None:
        """One of these faults, if it strikes now."""
        chosen = [kind for kind in kinds if kind in self.kinds]
        clear = asyncio.get_running_loop().time() > self.until
        return None if clear or not chosen or self.random.random() > share else self.random.choice(chosen)


class MortalApi(Api):
    """The product's client without its sockets. Dies after a number of writes, before anybody hears of the last one."""

    def __init__(self, server: ApiServer, weather: Weather, writes_left: float) -> None:
        self._configuration = Configuration()
        self._limit = RateLimit(0, 1)
        self._server = server
        self._weather = weather
        self._writes_left = writes_left
        self.dead = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        own = START.timestamp() + weather.own_skew
        self.clock = ServerClock(lambda: own + self._loop.time(), self._loop.time)

    async def _once(self, method: str, url: str, body: Manifest | None) -> Manifest:
        asked = self._loop.time()
        if self._weather.strikes([SLOW]):
            await asyncio.sleep(self._weather.random.uniform(0, 30))
        await asyncio.sleep(0.01)
        if self.dead.is_set():
            raise Death
        others = WRITES if method == "GET" else READS
        fault = self._weather.strikes([kind for kind in FAULTS if kind not in others])
        if fault == "late request":
            self._loop.call_later(self._weather.random.uniform(1, 60), self._arrive, method, url, body)
        if fault and fault != "lost answer":
            raise FAULTS[fault]
        now = START + timedelta(seconds=self._loop.time() + self._weather.skew)
        before = len(self._server.writes)
        answer = self._server.handle(method, url, body)
        self._writes_left -= len(self._server.writes) - before
        if self._writes_left <= 0:
            self.dead.set()
            raise Death
        if fault:
            raise FAULTS[fault]
        await asyncio.sleep(0.01)
        self.clock.heard(format_datetime(now, usegmt=True), asked)
        return answer

    def _arrive(self, method: str, url: str, body: Manifest | None) -> None:
        with contextlib.suppress(ApiError):
            self._server.handle(method, url, body)


class Watches:
    """What the server tells, on its way to the cache. A cut watch lists anew, as kopf does: no deletion is told."""

    def __init__(
        self, server: ApiServer, weather: Weather, take: Callable[[Resource, str | None, Manifest], None]
    ) -> None:
        self._server, self._weather, self._take = server, weather, take
        self._cut: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self.close = server.watch(self._told)

    def _told(self, resource: Resource, kind: str, body: Manifest) -> None:
        fault = self._weather.strikes(WATCH_FAULTS)
        if resource.plural in self._cut or fault == "dropped":
            return
        if fault == "cut":
            self._cut.add(resource.plural)
            self._loop.call_later(self._weather.random.uniform(1, 60), self._list_anew, resource)
            return
        delay = self._weather.random.uniform(0, 20) if fault == "late" else 0.01
        for _ in range(2 if fault == "duplicated" else 1):
            self._loop.call_later(delay, self._take, resource, kind, body)

    def _list_anew(self, resource: Resource) -> None:
        self._cut.discard(resource.plural)
        for body in self._server.listed(resource):
            self._take(resource, None, body)


@dataclass
class World:
    """The cluster's own course, and what the user does when."""

    server: ApiServer
    script: list[tuple[Callable[[ApiServer], bool], Callable[[ApiServer], Any]]] = field(default_factory=list)
    still: float = STILL
    moved_at: float = 0.0

    async def go_on(self, choose: Callable[[int], int] = lambda count: 0) -> None:
        """Moves, one a second, until nothing has happened for a while."""
        loop = asyncio.get_running_loop()
        writes = 0
        while loop.time() - self.moved_at < self.still:
            assert loop.time() < LONGEST, f"not steady: {self.server.job.status.to_wire()}"
            still = loop.time() - self.moved_at
            await asyncio.sleep(STEP if still < 20 * STEP else 20 * STEP if still < 300 * STEP else 100 * STEP)
            self.server.now = START + timedelta(seconds=loop.time())
            if self.script and self.script[0][0](self.server):
                self.script.pop(0)[1](self.server)
                self.moved_at = loop.time()
            elif moves := self.server.moves():
                moves[choose(len(moves))]()
                self.moved_at = loop.time()
            if len(self.server.writes) > writes:
                writes = len(self.server.writes)
                self.moved_at = loop.time()
            self.server.publish()
        assert not self.script, "the user still waits"


async def one_life(
    server: ApiServer, weather: Weather, writes_left: float = float("inf"), concurrency: int = 4
) -> None:
    """One process of the operator, until it dies. Everything that it knows dies with it."""
    loop = asyncio.get_running_loop()
    api, cache, queue = MortalApi(server, weather, writes_left), Cache(), WorkQueue[Name](loop.time)
    reconciler = Reconciler(
        cache=cache,
        queue=queue,
        applier=Applier(api, cache, "test"),
        decide=decide,
        settings=server.settings,
        progress=ProgressReports(queue, 10, loop.time, api.clock.now),
        last_words=LastWords(api, cache, loop.time),
        clock=api.clock.now,
    )

    def enqueue(name: Name) -> None:
        queue.add(name)
        if BUSY in weather.kinds:
            for other in OTHERS:
                queue.add(other)

    resync = Resync(api, cache, enqueue, watched=WATCHED, namespaces=["team-a"], seconds=RELIST)
    watches = Watches(server, weather, lambda resource, kind, body: take_event(cache, resource, kind, body, enqueue))
    dead = asyncio.create_task(api.dead.wait())
    tasks = [asyncio.create_task(_work(resync, queue, reconciler, 1 if BUSY in weather.kinds else 4)), dead]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not dead.done():
            tasks[0].result()
    finally:
        watches.close()
        queue.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _work(resync: Resync, queue: WorkQueue[Name], reconciler: Reconciler, concurrency: int) -> None:
    while True:  # as a process that ends and is started again
        try:
            await resync.once(first=True)
            break
        except ApiError:
            await asyncio.sleep(5)
    async with asyncio.TaskGroup() as group:
        group.create_task(queue.run(reconciler, concurrency))
        group.create_task(resync.forever())


def run_lives(
    world: World, *, deaths: Sequence[float] = (), away: float = 0.0, weather: Weather | None = None
) -> ApiServer:
    """Lives that end after so many writes each, `away` seconds apart, then one that lasts, until all is still."""

    async def main() -> None:
        sky = weather or Weather()
        choose = (lambda count: sky.random.randrange(count)) if weather else (lambda count: 0)
        course = asyncio.create_task(world.go_on(choose))

        async def operator() -> None:
            for writes in deaths:
                await one_life(world.server, sky, writes)
                await asyncio.sleep(away)
            await one_life(world.server, sky)

        lives = asyncio.create_task(operator())
        await asyncio.wait([course, lives], return_when=asyncio.FIRST_COMPLETED)
        if lives.done():
            lives.result()
        lives.cancel()
        await asyncio.gather(lives, return_exceptions=True)
        await course

    run_virtually(main())
    return world.server
