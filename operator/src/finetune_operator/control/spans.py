"""Spans of a run and of a pass, as plain values. Nothing is remembered between two passes.

A run is one trace: a span of the run itself, and below it one of each stage, made when a written status shows that
it has ended, from the times that the status has. The ids come from the job's uid, the run's number and the stage's
beginning, so that what another replica sends after a restart belongs to the same trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from finetune_api.conditions import RunResult, Stage
from finetune_api.job import FineTuneJob
from finetune_api.status import FineTuneJobStatus, RunStatus
from finetune_operator.conditions import shorten
from finetune_operator.control.passes import Pass
from finetune_operator.runs import ended_with_failure, is_done, record_of, stage_time
from finetune_operator.times import parse_time

ERROR_LENGTH = 1024
Value = str | int | float | list[str]


@dataclass(frozen=True, slots=True)
class Span:
    """`parent` and `link` are ids of spans: of the same trace, and of another. `error`: why it ended badly."""

    name: str
    trace: int
    span: int
    start: datetime
    end: datetime
    parent: int | None = None
    link: tuple[int, int] | None = None
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str | None = None


def run_ids(uid: str, run: int) -> tuple[int, int]:
    """Trace and span of a run: 128 and 64 bits, the same wherever they are asked for."""
    return _bits(16, "trace", uid, run), _bits(8, "run", uid, run)


def run_spans(job: FineTuneJob, before: FineTuneJobStatus, after: FineTuneJobStatus, now: datetime) -> Iterator[Span]:
    """What has ended between two statuses of a job: stages, runs, the way of a model into service."""
    if before.run is not None and (after.run is None or after.run.number != before.run.number):
        yield from _whole(job, before, after, before.run, now)  # the spec asks for another one
    if after.run is not None:
        old = before.run if before.run and before.run.number == after.run.number else None
        yield from _stages(job, old, after.run, now)
        yield from _whole(job, before, after, after.run, now)
    yield from _into_service(job, before, after, now)


def pass_span(this: Pass, trace: int, span: int) -> Span:
    """A pass over a job: what was decided and written. A trace of its own, which names the run's."""
    start = datetime.fromtimestamp(this.started).astimezone()
    return Span(
        name="reconcile",
        trace=trace,
        span=span,
        start=start,
        end=start + timedelta(seconds=this.seconds),
        link=run_ids(this.uid, this.run) if this.run is not None else None,
        attributes={
            **_identity(this.namespace, this.name, this.uid),
            **{f"finetune.{key}": value for key, value in this.decision().items()},
            **{f"finetune.{verb}": what for verb, what in this.written().items()},
        },
        error=shorten(this.error, ERROR_LENGTH) or None,
    )


def _stages(job: FineTuneJob, old: RunStatus | None, run: RunStatus, now: datetime) -> Iterator[Span]:
    """Stages that are done now and were not, and the one that failed. A run that was taken up again has no times."""
    for entry in run.stages:
        if entry.start_time and entry.completion_time and not (old and is_done(old, entry.stage)):
            yield _stage(job, run, entry.stage, entry.start_time, parse_time(entry.completion_time, now))
    failure = run.failure
    if failure is None or failure.stage is None or not ended_with_failure(run, failure.stage):
        return
    if old is None or not (old.failure and (old.failure.stage, old.failure.waiting) == (failure.stage, False)):
        begun = stage_time(run, failure.stage)
        start = (begun.start_time if begun else None) or failure.since or run.start_time or now.isoformat()
        error = shorten(f"{failure.reason}: {failure.message}", ERROR_LENGTH)
        yield _stage(job, run, failure.stage, start, parse_time(failure.since, now), error)


def _stage(job: FineTuneJob, run: RunStatus, stage: Stage, start: str, end: datetime, error: str | None = None) -> Span:
    trace, parent = run_ids(job.metadata.uid, run.number)
    return Span(
        name=stage.value,
        trace=trace,
        span=_bits(8, "stage", job.metadata.uid, run.number, stage.value, start),
        parent=parent,
        start=parse_time(start, end),
        end=max(end, parse_time(start, end)),
        attributes={**_of_run(job, run), "finetune.stage": stage.value, **_found(run, stage)},
        error=error,
    )


def _found(run: RunStatus, stage: Stage) -> dict[str, Value]:
    """What the stage is known by afterwards."""
    if stage is Stage.PREPARE and run.dataset:
        return {
            "finetune.train_examples": run.dataset.train_examples,
            "finetune.validation_examples": run.dataset.validation_examples,
            "finetune.loss_tokens": run.dataset.loss_tokens,
        }
    if stage is Stage.TRAIN:
        return {"finetune.attempt": run.attempt, **({"finetune.steps": run.progress.step} if run.progress else {})}
    return {}


def _whole(
    job: FineTuneJob, before: FineTuneJobStatus, after: FineTuneJobStatus, run: RunStatus, now: datetime
) -> Iterator[Span]:
    """The run itself, when its result is recorded for the first time."""
    record = record_of(after.runs, run.number)
    if record is None or record_of(before.runs, run.number) or not run.start_time:
        return
    trace, span = run_ids(job.metadata.uid, run.number)
    losses = {"finetune.loss": record.loss, "finetune.base_loss": record.base_loss}
    start = parse_time(run.start_time, now)
    yield Span(
        name=f"run {run.number}",
        trace=trace,
        span=span,
        start=start,
        end=max(start, parse_time(record.completion_time, now)),
        attributes={
            **_of_run(job, run),
            "finetune.trigger": run.trigger.value,
            "finetune.hash": run.hash,
            "finetune.task": job.spec.task.value,
            "finetune.result": record.result.value,
            **({"finetune.base_model": after.model_name} if after.model_name else {}),
            **{key: value for key, value in losses.items() if value is not None},
        },
        error=shorten(record.message, ERROR_LENGTH) if record.result is RunResult.FAILED else None,
    )


def _into_service(
    job: FineTuneJob, before: FineTuneJobStatus, after: FineTuneJobStatus, now: datetime
) -> Iterator[Span]:
    """From promotion until its servers had taken over."""
    run, model = after.run, after.model
    record = record_of(after.runs, run.number) if run else None
    if run is None or record is None or not run.start_time or model is None or after.endpoint is None:
        return
    if model.run == run.number and not (before.model and before.model.run == run.number):
        yield _stage(job, run, Stage.SERVE, record.completion_time or run.start_time, now)


def _of_run(job: FineTuneJob, run: RunStatus) -> dict[str, Value]:
    return {**_identity(job.metadata.namespace, job.metadata.name, job.metadata.uid), "finetune.run": run.number}


def _identity(namespace: str, name: str, uid: str) -> dict[str, Value]:
    return {"k8s.namespace.name": namespace, "finetune.job": name, "finetune.job.uid": uid}


def _bits(count: int, *parts: str | int) -> int:
    """So many bytes of a hash of the parts, as a number."""
    return int.from_bytes(hashlib.sha256("\n".join(map(str, parts)).encode()).digest()[:count])
