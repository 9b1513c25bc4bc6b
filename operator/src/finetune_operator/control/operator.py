"""The whole control plane of one process: put together, started, and ended in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import kopf
from kubernetes.aio.client import Configuration

from finetune_operator.control.api_client import Api, load_configuration
from finetune_operator.control.apply import Applier
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.certificates import Certificates
from finetune_operator.control.discovery import has_changed, kueue, until_changed, watched_kinds
from finetune_operator.control.environment import Environment
from finetune_operator.control.handlers import kopf_settings, make_registry
from finetune_operator.control.health import Health, serve_health
from finetune_operator.control.last_words import LastWords
from finetune_operator.control.lease import Lease, LeaseLostError
from finetune_operator.control.neighbours import Neighbours
from finetune_operator.control.progress import ProgressReports
from finetune_operator.control.receiver import serve_progress
from finetune_operator.control.reconcile import Decide, Reconciler
from finetune_operator.control.resources import Resource
from finetune_operator.control.resync import Resync
from finetune_operator.control.stateless import NoMemories
from finetune_operator.control.workqueue import WorkQueue

if TYPE_CHECKING:
    from finetune_operator.control.traces import Traces

logger = logging.getLogger(__name__)

FINISH_SECONDS = 6.0  # for the passes under way; with the release of the Lease below Kubernetes' 30 s by far


class Operator:
    """One replica. `run(stop)` returns when `stop` is set; raises when something essential ended."""

    def __init__(self, environment: Environment, decide: Decide, configuration: Configuration) -> None:
        self._environment = environment
        self._configuration = configuration
        self._api = Api(
            configuration,
            concurrency=environment.concurrency,
            timeout=environment.request_seconds,
            qps=environment.api_qps,
            burst=environment.api_burst,
        )
        self._cache = Cache()
        self._queue: WorkQueue[Name] = WorkQueue()
        self._lease = Lease(self._api, environment.lease) if environment.lease else None
        interval, now = environment.settings.progress_interval_seconds, self._api.clock.now
        self._progress = ProgressReports(self._queue, interval, clock=now)
        self._health = Health(self._cache, self._queue, resync_seconds=environment.resync_seconds)
        self._traces = _open_traces(environment)
        lease = environment.lease
        self._release = f"{lease.namespace}/{lease.name}" if lease else ""
        instance = lease.identity if lease else ""
        self._reconciler = Reconciler(
            cache=self._cache,
            queue=self._queue,
            applier=Applier(self._api, self._cache, instance, self._release),
            decide=decide,
            settings=environment.settings,
            progress=self._progress,
            last_words=LastWords(self._api, self._cache),
            clock=now,
            may_act=self._lease.valid if self._lease else lambda: True,
            traces=self._traces,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serves probes and progress at once, acts when it leads."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._api.close)
            if self._traces:
                stack.push_async_callback(self._traces.close)
            environment = self._environment
            health = await serve_health(self._health, environment.health_host, environment.health_port)
            stack.push_async_callback(health.cleanup)
            await self._serve_progress(stack)
            self._health.ready = True  # a follower is ready: it takes over and passes progress on
            if self._lease:
                stack.push_async_callback(self._lease.release)
                if not await _unless(stop, self._lease.acquire()):
                    return
            await self._lead(stop)

    async def _serve_progress(self, stack: contextlib.AsyncExitStack) -> None:
        environment = self._environment
        if environment.tls is None:
            return
        certificates = Certificates(environment.tls)
        receiver = await serve_progress(environment, certificates, self._api, self._cache, self._progress, self._lease)
        stack.push_async_callback(receiver.cleanup)
        watch = asyncio.create_task(certificates.watch(self._reconciler.trust))
        stack.push_async_callback(_cancel, [watch])

    async def _lead(self, stop: asyncio.Event) -> None:
        # From the first moment on: the first list of everything may take longer than the Lease lasts.
        holding = [asyncio.create_task(self._lease.hold())] if self._lease else []
        try:
            await self._act(stop, holding)
        finally:
            await _cancel(holding)

    async def _act(self, stop: asyncio.Event, holding: list[asyncio.Task[None]]) -> None:
        watched = await watched_kinds(self._api)
        logger.info("kueue=%s", kueue(watched))
        resync = Resync(
            self._api,
            self._cache,
            self._queue.add,
            watched=watched,
            namespaces=self._environment.watch_namespaces,
            seconds=self._environment.resync_seconds,
        )
        async with self._watching(watched):
            # Nothing is decided before everything is known; the watches fill the cache meanwhile.
            if not await _unless(stop, resync.once(first=True)):
                return
            self._health.resync = resync
            work = asyncio.create_task(self._queue.run(self._reconciler, self._environment.concurrency))
            ends = asyncio.create_task(self._end_when_others_are_to_be_watched(watched, stop))
            others = [asyncio.create_task(resync.forever()), ends, *holding]
            try:
                await _first_of(stop, [work, *others, *self._watch_tasks])
            except Exception:
                # The watch of a kind that is taken away fails, long before the next look at the kinds.
                failed = any(task.done() for task in self._watch_tasks)
                if not failed or not await has_changed(self._api, watched):
                    raise
            finally:
                await self._finish(work, others)

    async def _end_when_others_are_to_be_watched(self, watched: Sequence[Resource], stop: asyncio.Event) -> None:
        await until_changed(self._api, watched, self._environment.resync_seconds)
        stop.set()

    async def _finish(self, work: asyncio.Task[None], others: list[asyncio.Task[None]]) -> None:
        """The passes under way may end, while the Lease is still held; no new one begins."""
        self._queue.close()
        await asyncio.wait([work], timeout=FINISH_SECONDS)
        await _cancel([work, *others])

    @contextlib.asynccontextmanager
    async def _watching(self, watched: Sequence[Resource]) -> AsyncIterator[None]:
        """kopf's tasks. Its own runner is not used: on exit it cancels every task of the process."""
        namespaces = self._environment.watch_namespaces
        neighbours = Neighbours(self._release)
        registry = make_registry(self._configuration, self._cache, self._queue.add, watched, neighbours)
        self._watch_tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=kopf_settings(watched),
            memories=NoMemories(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
        )
        listen_for_signals(self._signalled)  # kopf has just put its own handlers in the place of ours
        try:
            yield
        finally:
            await _cancel(self._watch_tasks)

    def bind_signals(self, stop: asyncio.Event) -> None:
        """SIGTERM and SIGINT set `stop`."""
        self._signalled = stop.set
        listen_for_signals(stop.set)

    _signalled: Any = None
    _watch_tasks: Any = ()


def _open_traces(environment: Environment) -> Traces | None:
    """Imports OpenTelemetry only where traces are wanted: it costs memory and is no part of a small installation."""
    if environment.traces is None:
        return None
    from finetune_operator.control.traces import Traces

    return Traces(environment.traces)


def listen_for_signals(action: Any) -> None:
    """Calls `action` on SIGTERM and SIGINT; nothing without an action."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        if action:
            loop.add_signal_handler(number, action)


async def _unless(stop: asyncio.Event, what: Coroutine[Any, Any, None]) -> bool:
    """Runs it to its end, or cancels it when `stop` is set first. Returns whether it ended."""
    task = asyncio.create_task(what)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        await _cancel([task, stopped])


async def _first_of(stop: asyncio.Event, tasks: list[asyncio.Task[Any]]) -> None:
    """Returns when `stop` is set. Raises when one of the tasks ends, which none should."""
    stopped = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopped}:
            task.result()
            if not stop.is_set():
                raise RuntimeError(f"a task that never ends has ended: {task.get_name()}")
    finally:
        await _cancel([stopped])


async def _cancel(tasks: Any) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def operate(environment: Environment, decide: Decide) -> int:
    """Runs one replica until a signal; the exit code of the process."""
    stop = asyncio.Event()
    operator = Operator(environment, decide, await load_configuration(environment.kubeconfig))
    operator.bind_signals(stop)
    try:
        await operator.run(stop)
    except LeaseLostError as error:
        logger.error("lease=lost reason=%r exiting", str(error))
        return 1
    except Exception:
        logger.exception("operator=failed exiting")
        return 1
    logger.info("operator=stopped")
    return 0
