"""Events: one for each step of a job's life, found by comparing the old status with the new one."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.conditions import ConditionType as Type
from finetune_api.conditions import FailureReason, RunResult, Stage
from finetune_api.failure import Failure
from finetune_api.status import Beginning, FineTuneJobStatus, RunStatus
from finetune_operator.conditions import find, is_true, sentence, shorten
from finetune_operator.plan import Event
from finetune_operator.runs import is_done, stage_time
from finetune_operator.stages.budget import HELD
from finetune_operator.stages.pipeline import PIPELINE, STAGES
from finetune_operator.stages.suspension import SUSPENDED

SAID_LENGTH = 600  # characters of what is wrong, so that an Event has room for what to do; the status has the whole
IN_QUEUE = frozenset({FailureReason.QUEUED, FailureReason.QUEUE_UNAVAILABLE})


def events(old: FineTuneJobStatus, new: FineTuneJobStatus) -> tuple[Event, ...]:
    """What happened between the two, in order."""
    return tuple(_all(old, new))


def _all(old: FineTuneJobStatus, new: FineTuneJobStatus) -> Iterator[Event]:
    run, before = new.run, old.run
    if run is None:
        return
    same_run = before is not None and before.number == run.number
    known = is_done(run, Stage.EVALUATE) or run.evaluation is not None
    again = known or any(record.number == run.number for record in old.runs)
    if not same_run:
        yield _normal("RunStarted", f"Run {run.number} {'taken up again' if again else f'started ({_why(run)})'}.")
    if run.taken_over and not (same_run and before is not None and before.taken_over):
        whose = _why(run.taken_over)
        yield _normal("TakenOver", f"Run {run.number} takes over the files of a forgotten run ({whose}).")
    if same_run or not known:  # a run that is taken up again did all that before
        yield from _reached(old, new, same_run)
    yield from _suspension(old, new)
    yield from _schedule(old, new)
    yield from _polling(old, new)
    yield from _trouble(old, new, same_run)
    if new.endpoint and is_true(new.conditions, Type.SERVING) and _answering(old) != _answering(new):
        url = new.endpoint.url
        yield _normal("Serving", f"Run {new.endpoint.run} answers at {url} as {new.endpoint.model!r}.")


def _reached(old: FineTuneJobStatus, new: FineTuneJobStatus, same_run: bool) -> Iterator[Event]:
    """Stages that began, and conditions that became true, for this run."""
    for stage in PIPELINE:
        begun = stage.words.begun
        if begun and _has_begun(new, stage.stage) and not (same_run and _has_begun(old, stage.stage)):
            yield _normal(begun[0], f"Run {new.run.number if new.run else 0} {begun[1]}.")
        yield from _became_true(old, new, stage.words.condition, stage.words.event, same_run)
    judged = STAGES[Stage.JUDGE].words
    yield from _became_true(old, new, judged.condition, judged.event, same_run)
    yield from _became_true(old, new, Type.PROMOTED, "Promoted", same_run)
    beside = STAGES[Stage.PACKAGE].words
    yield from _became_true(old, new, beside.condition, beside.event, same_run)


def _became_true(
    old: FineTuneJobStatus, new: FineTuneJobStatus, kind: Type, reason: str, same_run: bool
) -> Iterator[Event]:
    condition = find(new.conditions, kind)
    if condition and condition.status == "True" and not (same_run and is_true(old.conditions, kind)):
        yield _normal(reason, condition.message)


def _suspension(old: FineTuneJobStatus, new: FineTuneJobStatus) -> Iterator[Event]:
    before, after = (find(status.conditions, Type.SUSPENDED) for status in (old, new))
    if after and after.status == "True" and not is_true(old.conditions, Type.SUSPENDED):
        yield _normal("Suspended", after.message)
    if before and not after:
        yield _normal("Resumed", "spec.suspend is no longer true.")
    if _is_out_of_budget(old) and not _is_out_of_budget(new):
        yield _normal("Resumed", "There is a budget again, or none is asked for.")


def _schedule(old: FineTuneJobStatus, new: FineTuneJobStatus) -> Iterator[Event]:
    """What went wrong with it: an occasion that was passed over, a schedule that makes no sense."""
    missed = new.schedule.missed_time if new.schedule else None
    if missed and missed != (old.schedule.missed_time if old.schedule else None):
        text = f"The occasion {missed} is passed over: it is more than startingDeadlineSeconds ago."
        yield Event("Warning", "OccasionMissed", text)
    before, after = (find(status.conditions, Type.SCHEDULED) for status in (old, new))
    invalid = after is not None and after.reason == FailureReason.SCHEDULE_INVALID
    if after and invalid and not (before and before.message == after.message):
        yield Event("Warning", after.reason, after.message)


def _polling(old: FineTuneJobStatus, new: FineTuneJobStatus) -> Iterator[Event]:
    """Why the data cannot be looked at, once a cause."""
    before, after = (find(status.conditions, Type.DATASET_POLLED) for status in (old, new))
    fails = after is not None and after.status == "False" and after.reason != SUSPENDED
    if after and fails and not (before and (before.status, before.reason) == (after.status, after.reason)):
        yield Event("Warning", after.reason, f"Dataset poll: {after.message}")


def _why(run: RunStatus | Beginning) -> str:
    """What began it."""
    return f"{run.trigger}, {run.occasion}" if run.occasion else run.trigger


def _trouble(old: FineTuneJobStatus, new: FineTuneJobStatus, same_run: bool) -> Iterator[Event]:
    gate, gate_before = find(new.conditions, Type.PROMOTED), find(old.conditions, Type.PROMOTED)
    if gate and gate.status == "False" and not (same_run and gate_before and gate_before.reason == gate.reason):
        failed = gate.reason in (RunResult.GATE_FAILED, RunResult.ROLLED_BACK)
        yield Event("Warning" if failed else "Normal", gate.reason, gate.message)
    failure = new.run.failure if new.run else None
    before = old.run.failure if old.run else None
    if failure is None:
        if same_run and before is not None and before.waiting and not _is_told_otherwise(before):
            yield _normal("Resolved", f"{before.reason} is over; run {new.run.number if new.run else 0} goes on.")
        return
    known = same_run and before is not None and (before.reason, before.waiting) == (failure.reason, failure.waiting)
    told = gate is not None and gate.reason == RunResult.ROLLED_BACK and failure.stage is Stage.SERVE
    if not (known or told):
        reason = failure.reason.value if failure.waiting else "Failed"
        said = shorten(f"{failure.reason}: {failure.message}", SAID_LENGTH)
        text = f"{sentence(said)} {sentence(failure.advice, capital=True)}"
        # To wait for one's turn is what a queue is for.
        if failure.reason is FailureReason.QUEUED:
            yield _normal(reason, text)
        else:
            yield Event("Warning", reason, text)


def _is_told_otherwise(over: Failure) -> bool:
    """Whether the end of this wait has an Event of its own: TrainingStarted, Resumed, Serving."""
    return over.reason in IN_QUEUE or over.reason in HELD or over.stage is Stage.SERVE


def _has_begun(status: FineTuneJobStatus, stage: Stage) -> bool:
    """Whether its Job is there, and was let go by its queue."""
    entry = stage_time(status.run, stage) if status.run else None
    failure = status.run.failure if status.run else None
    queued = failure is not None and failure.stage is stage and failure.reason in IN_QUEUE
    return entry is not None and entry.start_time is not None and not queued


def _is_out_of_budget(status: FineTuneJobStatus) -> bool:
    failure = status.run.failure if status.run else None
    return failure is not None and failure.reason in HELD


def _answering(status: FineTuneJobStatus) -> int | None:
    """Run that answers."""
    return status.endpoint.run if status.endpoint and is_true(status.conditions, Type.SERVING) else None


def _normal(reason: str, message: str) -> Event:
    return Event("Normal", reason, message)
