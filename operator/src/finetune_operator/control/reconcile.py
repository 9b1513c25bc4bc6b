"""One pass over one job: what is known -> what shall be -> make it so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

from pydantic import ValidationError

from finetune_api.conditions import ConditionType, FailureReason
from finetune_api.job import FineTuneJob
from finetune_api.status import FineTuneJobStatus
from finetune_operator.control.api_client import ApiError
from finetune_operator.control.apply import Applier, GoneError, StaleError
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.last_words import LastWords
from finetune_operator.control.metrics import RECONCILE_SECONDS, UNREADABLE
from finetune_operator.control.observe import observe
from finetune_operator.control.origin import dependents_in_cache, origin_in_cache
from finetune_operator.control.outcomes import count_outcomes
from finetune_operator.control.passes import Pass, current_pass, following
from finetune_operator.control.resources import FINE_TUNE_JOB
from finetune_operator.control.turns import Turns
from finetune_operator.control.workqueue import WorkQueue
from finetune_operator.plan import ApplyFailure, Event, Manifest, Observed, Plan, ProgressReport
from finetune_operator.settings import Settings
from finetune_operator.times import stamp

logger = logging.getLogger(__name__)

Decide = Callable[[FineTuneJob, Observed, datetime, Settings], Plan]


class ProgressSource(Protocol):
    """What the training pods said last."""

    def report(self, name: Name) -> ProgressReport | None: ...

    def forget(self, name: Name) -> None: ...


class Tracing(Protocol):
    """Who is told what happened, where traces are switched on. Neither waits nor raises."""

    def moved(self, job: FineTuneJob, before: FineTuneJobStatus, after: FineTuneJobStatus, now: datetime) -> None: ...

    def passed(self, this: Pass) -> None: ...


class StatusUnreadableError(Exception):
    """A newer version wrote the stored status. It is not overwritten: it may hold the only record of the runs."""


class Reconciler:
    """Passes over jobs. `may_act` says whether this replica still leads; asked before every pass."""

    def __init__(
        self,
        *,
        cache: Cache,
        queue: WorkQueue[Name],
        applier: Applier,
        decide: Decide,
        settings: Settings,
        progress: ProgressSource,
        last_words: LastWords,
        may_act: Callable[[], bool] = lambda: True,
        traces: Tracing | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._applier = applier
        self._decide = decide
        self._settings = settings
        self._progress = progress
        self._last_words = last_words
        self._may_act = may_act
        self._traces = traces
        self._clock = clock
        self._refused: dict[Name, tuple[str, ApplyFailure]] = {}  # uid of the job, what the API server refused last
        self._unreadable: set[Name] = set()
        self._turns = Turns(cache, settings.server_rollouts)

    def trust(self, authority: str) -> None:
        """The progress receiver has another certificate authority: runs that begin from now on trust that one."""
        if self._settings.progress_url:
            self._settings = replace(self._settings, progress_ca=authority)

    async def __call__(self, name: Name) -> None:
        """Never raises: what failed is tried again, later and later. One line in the log, unless nothing was to do."""
        with following(*name) as this:
            await self._attempt(name, this)
        RECONCILE_SECONDS.labels(this.outcome).observe(this.seconds)
        if self._traces:
            self._traces.passed(this)

    async def _attempt(self, name: Name, this: Pass) -> None:
        try:
            this.outcome = await self._guarded(name)
        except ApiError as error:
            this.outcome, this.error = "api_error", str(error)
            delay = self._queue.retry(name, error.retry_after or 0.0)
            logger.warning("%s retry_in=%.1f error=%r", this, delay, str(error))
        except Exception as error:
            this.outcome, this.error = "fault", f"{type(error).__name__}: {error}"
            delay = self._queue.retry(name)
            logger.exception("%s retry_in=%.1f error=unexpected", this, delay)
        else:
            if this.error:
                logger.error("%s error=%r", this, this.error)
            elif this.writes:
                logger.info("%s", this)

    async def _guarded(self, name: Name) -> str:
        if not self._may_act():
            return "not_leader"
        try:
            await self._pass(name)
        except StaleError:
            self._queue.add_after(name, 1.0)  # in case its event has been handled already
            return "stale"
        except GoneError:
            return "gone"
        except StatusUnreadableError as error:
            return await self._report_unreadable(name, error)
        return "done"

    async def _pass(self, name: Name) -> None:
        body = self._cache.get(FINE_TUNE_JOB, name)
        if body is None or body["metadata"].get("deletionTimestamp"):
            self._forget(name)
            return
        job = _parsed(body)
        self._count_unreadable(name, unreadable=False)
        if isinstance(job, ValidationError):
            await self._report_invalid(body, job)
            return
        try:
            await self._execute(body, job)
        finally:
            for waiting in self._turns.ended(name):
                self._queue.add(waiting)

    async def _execute(self, body: Manifest, job: FineTuneJob) -> None:
        name = (job.metadata.namespace, job.metadata.name)
        now = self._clock()
        observed = self._observe(job, self._last_refused(job))
        plan = self._decided(self._decide(job, observed, now, self._settings), job)
        self._turns.decided(name, plan)
        applied = await self._applier.children(job.metadata.uid, plan.apply)
        refused = applied.refused
        # A later status may hold what nothing else remembers: that a run was rolled back.
        first = not job.status.observed_generation
        if first and plan.apply and not refused and self._queue.postpone(name):
            return  # as if it died here: the next pass finds the children and tells of them
        if applied.otherwise or refused != observed.apply_failure:
            plan = self._reconsider(job, refused, plan, now)
        status = plan.status.to_wire()
        if await self._applier.status(body, status):
            count_outcomes(job.metadata.namespace, job.status, plan.status)
            if self._traces:
                self._traces.moved(job, job.status, plan.status, now)
            self._tell_dependents(name, job.status, plan.status)
            await self._applier.events(body, plan.events)
        # Last: what is deleted is decided anew in every pass, what the status remembers is not.
        await self._applier.delete(plan.delete)
        await self._seek_last_words(name, plan, observed)
        if refused:
            self._queue.retry(name)
        else:
            self._queue.succeeded(name)
        if plan.requeue_after is not None:
            self._queue.add_after(name, plan.requeue_after)

    async def _seek_last_words(self, name: Name, plan: Plan, observed: Observed) -> None:
        if not plan.unread:
            self._last_words.found(name)
            return
        self._queue.add_after(name, await self._last_words.seek(name, observed.jobs.values()))

    def _observe(self, job: FineTuneJob, refused: ApplyFailure | None) -> Observed:
        name = (job.metadata.namespace, job.metadata.name)
        seen = observe(self._cache, job.metadata.uid, self._progress.report(name), refused)
        dependents = dependents_in_cache(self._cache, job)
        return replace(
            seen,
            origin=origin_in_cache(self._cache, job),
            dependents=dependents,
            rolling=self._turns.others(name),
            unread=self._last_words.unread(name, seen.jobs.values()),
        )

    def _last_refused(self, job: FineTuneJob) -> ApplyFailure | None:
        """Of this very job, not of a former one of its name."""
        uid, refused = self._refused.get((job.metadata.namespace, job.metadata.name), ("", None))
        return refused if uid == job.metadata.uid else None

    def _reconsider(self, job: FineTuneJob, refused: ApplyFailure | None, first: Plan, now: datetime) -> Plan:
        """The writes went otherwise than the last time: the status shall say so at once, not a pass later."""
        name = (job.metadata.namespace, job.metadata.name)
        if refused:
            self._refused[name] = (job.metadata.uid, refused)
        else:
            self._refused.pop(name, None)
            self._queue.add(name)
        plan = self._decided(self._decide(job, self._observe(job, refused), now, self._settings), job)
        return replace(plan, apply=(), delete=first.delete)

    def _tell_dependents(self, name: Name, before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
        """Our own writes are no news to the watches, so that who waits for this job is told here."""
        if before.runs != after.runs:
            for waiting in self._cache.dependents(name):
                self._queue.add(waiting)

    async def _report_invalid(self, body: Manifest, error: ValidationError) -> None:
        """The stored spec is older or newer than our rules: say so, touch nothing that runs."""
        status = invalid_status(body, error, self._clock())
        if await self._applier.status(body, status):
            message = status["conditions"][-1]["message"]
            event = Event("Warning", FailureReason.SPEC_INVALID, message)
            await self._applier.events(body, [event])

    async def _report_unreadable(self, name: Name, error: StatusUnreadableError) -> str:
        """Say so where the user looks, and touch nothing. The next pass comes with a change or a resync."""
        self._count_unreadable(name, unreadable=True)
        self._queue.succeeded(name)
        if this := current_pass():
            this.error = str(error)
        if body := self._cache.get(FINE_TUNE_JOB, name):
            await self._applier.events(body, [Event("Warning", "StatusUnreadable", str(error))])
        return "unreadable"

    def _count_unreadable(self, name: Name, *, unreadable: bool) -> None:
        (self._unreadable.add if unreadable else self._unreadable.discard)(name)
        UNREADABLE.set(len(self._unreadable))

    def _forget(self, name: Name) -> None:
        """Whether it is on its way out or has vanished from one moment to the next."""
        self._count_unreadable(name, unreadable=False)
        self._queue.forget(name)
        self._turns.forget(name)
        self._progress.forget(name)
        self._last_words.forget(name)
        self._refused.pop(name, None)

    @staticmethod
    def _decided(plan: Plan, job: FineTuneJob) -> Plan:
        if this := current_pass():
            this.decided(job.metadata.uid, plan.status)
        return plan


def _parsed(body: Manifest) -> FineTuneJob | ValidationError:
    try:
        return FineTuneJob.model_validate(body)
    except ValidationError as error:
        for each in error.errors():
            if each["loc"][:1] != ("spec",):
                raise StatusUnreadableError(_unreadable(each)) from error
        return error


def _unreadable(error: Any) -> str:
    place, value = ".".join(str(part) for part in error["loc"]), str(error.get("input"))[:100]
    return (
        f"{place}: {value!r} is unknown to this version of the operator ({error['msg'][:300]}). "
        "A newer one wrote it: upgrade the operator again. Until then this job is left as it is; what runs, runs on."
    )


def invalid_status(body: Manifest, error: ValidationError, now: datetime) -> dict[str, Any]:
    """The stored status with Stalled=True, Ready=False for a spec that this version cannot read."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = f"{place}: {first['msg']}; correct the field (kubectl explain finetunejob.{place.split('.')[0]})"[:4096]
    stored = body.get("status", {})
    kept = {each["type"]: each for each in stored.get("conditions", ())}
    generation = body["metadata"].get("generation", 0)
    wanted = ((ConditionType.READY, "False"), (ConditionType.RECONCILING, "False"), (ConditionType.STALLED, "True"))
    for kind, value in wanted:
        since = kept.get(kind, {}).get("lastTransitionTime") if kept.get(kind, {}).get("status") == value else None
        kept.pop(kind, None)
        kept[kind] = {
            "type": str(kind),
            "status": value,
            "reason": str(FailureReason.SPEC_INVALID),
            "message": message,
            "lastTransitionTime": since or stamp(now),
            "observedGeneration": generation,
        }
    return {**stored, "observedGeneration": generation, "conditions": list(kept.values())}
