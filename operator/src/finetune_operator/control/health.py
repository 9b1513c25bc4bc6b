"""/healthz, /readyz and /metrics on one plain HTTP port.

/healthz fails when a restart would help: the event loop hangs (then nothing answers), a job waits far too long,
lists fail for long, or a watch stays silent while things change. Not leading is healthy.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from finetune_api.conditions import ConditionType
from finetune_operator.control import metrics
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.resources import FINE_TUNE_JOB
from finetune_operator.control.resync import Resync
from finetune_operator.control.workqueue import WorkQueue
from finetune_operator.plan import Manifest
from finetune_operator.stages.suspension import SUSPENDED

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

OLDEST_SECONDS = 300.0  # a burst of thousands of jobs is through long before


class Health:
    """What the probes ask. Parts are filled in when they exist: a follower has none of them."""

    def __init__(self, cache: Cache, queue: WorkQueue[Name], *, resync_seconds: float) -> None:
        self._cache = cache
        self._queue = queue
        self._resync_seconds = resync_seconds
        self.resync: Resync | None = None
        self.ready = False

    def problem(self) -> str | None:
        """Why a restart would help, or None."""
        oldest = self._queue.oldest_seconds()
        if oldest > OLDEST_SECONDS:
            return f"a job has been waiting for {oldest:.0f} s"
        if self.resync is None or self.resync.finished_at is None:
            return None
        age = time.monotonic() - self.resync.finished_at
        if age > 3 * self._resync_seconds + 60:
            return f"the last complete list is {age:.0f} s old"
        if self.resync.silent:
            return f"watches are silent while things change: {', '.join(self.resync.silent)}"
        return None

    def refresh_metrics(self) -> None:
        """Brings the gauges up to date. Series of jobs that are gone or done go away."""
        metrics.QUEUE_DEPTH.set(self._queue.depth)
        metrics.QUEUE_OLDEST_SECONDS.set(self._queue.oldest_seconds())
        for gauge in metrics.OF_JOBS:
            gauge.clear()
        counts: Counter[tuple[str, str]] = Counter()
        since: dict[str, float] = {}
        for body in self._cache.objects(FINE_TUNE_JOB):
            status = body.get("status") or {}
            counts[status.get("stage") or "None", _condition(status, ConditionType.READY)] += 1
            _export_trouble(status, since)
            _export_training(body, status)
            if held := ((status.get("run") or {}).get("cost") or {}).get("gpus"):
                metrics.GPUS_HELD.labels(body["metadata"]["namespace"]).inc(held)
        for (stage, ready), count in counts.items():
            metrics.JOBS.labels(stage, ready).set(count)
        for reason, moment in since.items():
            metrics.WAITING_SINCE.labels(reason).set(moment)

    def routes(self) -> list[web.RouteDef]:
        """The handlers for an aiohttp application."""
        return [
            web.get("/healthz", self._answer(self.problem)),
            web.get("/readyz", self._answer(lambda: None if self.ready else "starting")),
            web.get("/metrics", self._metrics),
        ]

    def _answer(self, problem: Callable[[], str | None]) -> Handler:
        async def handler(_: web.Request) -> web.Response:
            text = problem()
            return web.Response(text=f"{text or 'ok'}\n", status=503 if text else 200)

        return handler

    async def _metrics(self, _: web.Request) -> web.Response:
        self.refresh_metrics()
        body = generate_latest(metrics.REGISTRY)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _condition(status: Manifest, kind: ConditionType, part: str = "status") -> str:
    return next((str(each[part]) for each in status.get("conditions") or () if each["type"] == kind), "Unknown")


def _export_trouble(status: Manifest, since: dict[str, float]) -> None:
    """One more of its reason, where a job is stalled or waits. `since`: by reason, when the first of them began to."""
    if _condition(status, ConditionType.STALLED) == "True":
        metrics.STALLED.labels(_condition(status, ConditionType.STALLED, "reason")).inc()
    elif (failure := (status.get("run") or {}).get("failure") or {}).get("waiting"):
        reason = str(failure.get("reason"))
        metrics.WAITING.labels(reason).inc()
        if began := failure.get("since"):
            since[reason] = min(datetime.fromisoformat(began).timestamp(), since.get(reason, float("inf")))
    polls = _condition(status, ConditionType.DATASET_POLLED, "reason")
    if _condition(status, ConditionType.DATASET_POLLED) == "False" and polls != SUSPENDED:
        metrics.POLLS_FAILING.labels(polls).inc()


def _export_training(body: Manifest, status: Manifest) -> None:
    """Progress of a job in its Train stage; all others have no series."""
    run = status.get("run") or {}
    progress = run.get("progress")
    if status.get("stage") != "Train" or not progress or run.get("failure", {}).get("waiting") is False:
        return
    labels = (body["metadata"]["namespace"], body["metadata"]["name"], str(run.get("number")))
    metrics.PERCENT.labels(*labels).set(progress.get("percent", 0))
    if progress.get("trainLoss") is not None:
        metrics.LOSS.labels(*labels).set(progress["trainLoss"])


async def serve_health(health: Health, host: str, port: int) -> web.AppRunner:
    """Starts answering; the caller cleans the runner up."""
    application = web.Application()
    application.add_routes(health.routes())
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
