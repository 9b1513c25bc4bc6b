"""`spec.triggers.schedule`: whether an occasion asks for a run now, and what the status says of the next one.

An occasion is identified by its time: the run that it starts is named by it (`occasion_hash`), and the status remembers
up to when occasions are dealt with. So none is met twice, whoever looks, how often, and by which clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.conditions import ConditionType, FailureReason, Trigger
from finetune_api.status import RunStatus, ScheduleStatus
from finetune_api.triggers import ConcurrencyPolicy, ScheduleSpec
from finetune_operator import runs
from finetune_operator.conditions import Judgement
from finetune_operator.occasions import ScheduleError, last_until, next_after
from finetune_operator.runs import Occasion, occasion_of
from finetune_operator.stages.view import View
from finetune_operator.times import parse_time, stamp

# A moment further ahead than any skew between machines was written by a clock that was wrong.
SKEW = timedelta(days=1)
# An occasion longer ago is none that a backup was made after.
OLDEST = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Agenda:
    """What the schedule says now: the occasion that asks for a run, where it is, the condition, and in how many
    seconds to look again."""

    occasion: Occasion | None = None
    status: ScheduleStatus | None = None
    judgement: Judgement | None = None
    requeue_after: float | None = None

    @property
    def judgements(self) -> tuple[Judgement, ...]:
        return (self.judgement,) if self.judgement else ()


def consult(view: View) -> Agenda:
    """Before a run is selected."""
    schedule = view.job.spec.triggers.schedule
    if schedule is None:
        return Agenda()
    if schedule.suspend:
        return Agenda(judgement=_not("Suspended", "spec.triggers.schedule.suspend is true: no run begins by itself."))
    known = _known(view, schedule)
    try:
        return _consult(view, schedule, _caught_up(view, schedule, known))
    except ScheduleError as error:
        text = f"spec.triggers.schedule.{error}. No run begins by the schedule until then."
        return Agenda(
            status=known.model_copy(update={"next_time": None}),
            judgement=_not(FailureReason.SCHEDULE_INVALID, text),
        )


def _consult(view: View, schedule: ScheduleSpec, known: ScheduleStatus) -> Agenda:
    since = parse_time(known.since, view.now)
    due = last_until(schedule.cron, schedule.time_zone, since, view.now)
    if due is not None and _is_late(view, schedule, due):
        known = known.model_copy(update={"since": stamp(due), "missed_time": stamp(due)})
        since, due = due, None
    if due is None:
        return _planned(view, schedule, known, since)
    held = _held(view, schedule)
    if held is not None:
        reason, text = held
        judgement: Judgement = (ConditionType.SCHEDULED, "True", reason, f"An occasion has come, and {text}.")
        first = next_after(schedule.cron, schedule.time_zone, since)
        return Agenda(status=known.model_copy(update={"next_time": stamp(first)}), judgement=judgement)
    taken = known.model_copy(update={"since": stamp(due), "last_time": stamp(due)})
    planned = _planned(view, schedule, taken, due)
    return Agenda(Occasion(Trigger.SCHEDULE, stamp(due)), planned.status, planned.judgement, planned.requeue_after)


def _known(view: View, schedule: ScheduleSpec) -> ScheduleStatus:
    """Up to when occasions are dealt with. Those before the schedule was first seen are nobody's."""
    cron = f"{schedule.cron} {schedule.time_zone}"
    known = view.job.status.schedule
    if known is None or known.cron != cron or parse_time(known.since, view.now) > view.now + SKEW:
        return ScheduleStatus(cron=cron, since=view.time)
    return known


def _caught_up(view: View, schedule: ScheduleSpec, known: ScheduleStatus) -> ScheduleStatus:
    """After a restore the newest run's files may be of an occasion of this schedule: what was after it is still to
    come, or was missed. Not before that run has ended, or it would be superseded. Raises ScheduleError.

    An occasion of another schedule, which this one was before, or which is made up on the volume, tells nothing.
    """
    run = view.job.status.run
    if run is None or run.taken_over is None or runs.is_under_way(run, view.job.status.runs):
        return known
    found = run.taken_over
    moment = parse_time(found.occasion, view.now)
    first_seen = known.since == run.start_time  # and nothing has come since
    if found.trigger is not Trigger.SCHEDULE or not first_seen or not view.now - OLDEST < moment < view.now:
        return known
    before = moment - timedelta(seconds=1)
    if last_until(schedule.cron, schedule.time_zone, before, moment) != moment:
        return known
    return known.model_copy(update={"since": stamp(moment), "last_time": stamp(moment)})


def _is_late(view: View, schedule: ScheduleSpec, due: datetime) -> bool:
    deadline = schedule.starting_deadline_seconds
    return deadline is not None and (view.now - due).total_seconds() > deadline


def _held(view: View, schedule: ScheduleSpec) -> tuple[str, str] | None:
    """Why an occasion has to wait."""
    status = view.job.status
    if view.job.spec.suspend:
        return "Suspended", "its run begins when spec.suspend is false"
    if status.run is None or not runs.is_under_way(status.run, status.runs):
        return None
    if schedule.concurrency_policy is ConcurrencyPolicy.REPLACE:
        return None
    return "RunUnderWay", f"its run begins when run {status.run.number} has ended (concurrencyPolicy: Forbid)"


def _planned(view: View, schedule: ScheduleSpec, known: ScheduleStatus, since: datetime) -> Agenda:
    coming = next_after(schedule.cron, schedule.time_zone, since)
    text = f"The next run begins at {stamp(coming)} ({known.cron})."
    return Agenda(
        status=known.model_copy(update={"next_time": stamp(coming)}),
        judgement=(ConditionType.SCHEDULED, "True", "Planned", text),
        requeue_after=max(0.0, (coming - view.now).total_seconds()),
    )


def _not(reason: str, text: str) -> Judgement:
    return ConditionType.SCHEDULED, "False", reason, text


def settled(agenda: Agenda, view: View, run: RunStatus) -> Agenda:
    """The agenda once the run is selected. Where children of another one were found, begun by a pass that was cut
    short before it wrote the status, the occasion is still to come."""
    known = view.job.status.run
    found = run.trigger is Trigger.SCHEDULE and (known is None or known.number != run.number)
    if agenda.status is None or occasion_of(run) == agenda.occasion or not (agenda.occasion or found):
        return agenda
    status = view.job.status.schedule
    if found and agenda.occasion is None and status is not None and (run.occasion or "") <= status.since:
        return agenda  # it is taken up again; its occasion is long dealt with, and so are those since
    if status is not None and run.trigger is Trigger.SCHEDULE and run.occasion:
        status = status.model_copy(update={"since": run.occasion, "last_time": run.occasion})
    return replace(agenda, status=status, requeue_after=0.0)
