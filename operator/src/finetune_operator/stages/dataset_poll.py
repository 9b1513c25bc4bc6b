"""`spec.triggers.datasetPoll`: whether the data is looked at now, and what the last look has found.

The Job of the last look is the memory: it stays until the next one is made, and is heard in each pass. So a look that
finds nothing new writes nothing, and an operator that was away finds what was found meanwhile. There is one at a time,
known by its moment: a pass that is cut short and done again makes the same Job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from finetune_api.conditions import ConditionType, FailureReason, Stage, Trigger
from finetune_api.dataset_poll import DatasetPollSpec, DatasetPollStatus, PollOrder
from finetune_api.job import run_hash
from finetune_api.reports import Summary
from finetune_api.status import RunStatus
from finetune_operator import names, runs
from finetune_operator.advice import advice_for
from finetune_operator.builders.poll_job import DEADLINE_SECONDS, POLL, poll_job
from finetune_operator.conditions import Judgement, find, sentence
from finetune_operator.diagnose import (
    Finding,
    held_back,
    is_explained,
    job_condition,
    job_failure,
    look_again_after,
    pod_trouble,
    refused_pod,
    summary_of,
)
from finetune_operator.looks import next_look
from finetune_operator.plan import Manifest, ObjectRef
from finetune_operator.runs import Occasion
from finetune_operator.stages.job_stage import ensure_config_map, is_unread
from finetune_operator.stages.suspension import SUSPENDED
from finetune_operator.stages.view import View, is_deleting, owner_uids, reference
from finetune_operator.times import parse_time, stamp

# What is no news is written so seldom: it would be a write a look, for thousands of jobs.
NEWS = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Polling:
    """What the looks at the data say now: the occasion that asks for a run, what the status keeps, the condition, what
    is written, and in how many seconds to look again."""

    occasion: Occasion | None = None
    status: DatasetPollStatus | None = None
    judgement: Judgement | None = None
    apply: tuple[Manifest, ...] = ()
    delete: tuple[ObjectRef, ...] = ()
    requeue_after: float | None = None
    unread: bool = False  # what its pods said last has to be read first

    @property
    def judgements(self) -> tuple[Judgement, ...]:
        return (self.judgement,) if self.judgement else ()


def consult(view: View, *, busy: bool) -> Polling:
    """Before a run is selected. `busy`: something else begins one now."""
    spec, jobs = view.job.spec.triggers.dataset_poll, _jobs(view)
    if spec is None:
        return Polling(delete=_away(view, jobs))
    run, known = view.job.status.run, view.job.status.dataset_poll
    if spec.suspend:
        text = "spec.triggers.datasetPoll.suspend is true: nobody looks at the data."
        judgement: Judgement = (ConditionType.DATASET_POLLED, "False", SUSPENDED, text)
        return Polling(status=known, judgement=judgement, delete=_away(view, jobs))
    if run is None or busy or _is_under_way(view, run):
        return Polling(status=known, judgement=_told(view, spec), delete=_away(view, jobs))
    own = [job for job in jobs if names.number(names.annotation(job, names.ANNOTATION_POLLED_RUN)) == run.number]
    stale = _away(view, [job for job in jobs if job not in own])
    known = known if known is not None and known.run == run.number else DatasetPollStatus(run=run.number)
    heard = _heard(view, spec, run, known, own)
    return replace(heard, delete=stale + heard.delete)


def settled(polling: Polling, view: View, run: RunStatus) -> Polling:
    """The same once the run is selected: what is kept of another one is of no use."""
    spec = view.job.spec.triggers.dataset_poll
    if spec is None or (polling.status is not None and polling.status.run == run.number):
        return polling
    judgement = polling.judgement if spec.suspend else _fine(spec)
    return replace(polling, status=DatasetPollStatus(run=run.number), judgement=judgement)


def _jobs(view: View) -> list[Manifest]:
    """Those of all looks, oldest first."""
    found = [job for job in view.observed.jobs.values() if names.label(job, names.LABEL_STAGE) == POLL]
    return sorted(found, key=_moment)


def _moment(job: Manifest) -> datetime:
    return datetime.fromtimestamp(names.poll_moment(job["metadata"]["name"]), UTC)


def _away(view: View, jobs: Sequence[Manifest]) -> tuple[ObjectRef, ...]:
    return tuple(reference(job, view.job.metadata.namespace) for job in jobs if not is_deleting(job))


def _is_under_way(view: View, run: RunStatus) -> bool:
    """Whether a run is, or begins in this pass because the spec has changed."""
    return runs.is_under_way(run, view.job.status.runs) or not runs.is_of(run_hash(view.job.spec), run)


def _told(view: View, spec: DatasetPollSpec, finding: Finding | None = None) -> Judgement:
    """The condition. Trouble is said until a look succeeds, or another run is the newest."""
    kind = ConditionType.DATASET_POLLED
    if finding is not None:
        advice = finding.advice or advice_for(finding.reason, finding.message)
        words = (sentence(finding.message), sentence(advice, capital=True), "No run begins by it; later looks follow.")
        return kind, "False", finding.reason, " ".join(words)
    before, known, run = find(view.job.status.conditions, kind), view.job.status.dataset_poll, view.job.status.run
    if before and before.status == "False" and before.reason != SUSPENDED and known and run and known.run == run.number:
        return kind, before.status, before.reason, before.message
    return _fine(spec)


def _fine(spec: DatasetPollSpec) -> Judgement:
    text = f"The data is looked at about every {spec.period_seconds} seconds while no run is under way."
    return ConditionType.DATASET_POLLED, "True", "Planned", text


def _heard(
    view: View, spec: DatasetPollSpec, run: RunStatus, known: DatasetPollStatus, jobs: Sequence[Manifest]
) -> Polling:
    """What the last look has come to."""
    silent = Polling(status=known, judgement=_told(view, spec))
    if not jobs:
        return _planned(view, spec, run, silent, jobs)
    newest, older = jobs[-1], _away(view, jobs[:-1])
    uid = newest["metadata"].get("uid")
    pods = [pod for pod in view.observed.pods if uid in owner_uids(pod)]
    complete, failed = (job_condition(newest, kind) for kind in ("Complete", "Failed"))
    if not complete and not failed:
        return replace(_waiting(view, spec, silent, newest, pods), delete=older)
    if failed:
        over = failed.get("reason") == "DeadlineExceeded"
        if not over and is_unread(view, newest) and not is_explained(newest, pods):
            return replace(silent, delete=older, unread=True)
        return _planned(view, spec, run, _failed(view, spec, known, newest, pods), jobs)
    summary = summary_of(pods)
    found = summary.dataset.fingerprint if summary and summary.dataset else None
    if found is None and is_unread(view, newest):
        return replace(silent, delete=older, unread=True)
    if found is None:  # its words are lost with its pod: the next look will do
        return _planned(view, spec, run, silent, jobs)
    read = _read_by(run, view, known)
    first = found if read.fingerprint is None else None
    fine = replace(silent, status=_seen(known, newest, first), judgement=_fine(spec))
    if found == read.fingerprint or (first and not _is_other(summary, read)):
        return _planned(view, spec, run, fine, jobs)
    if trouble := _names_only(view, run, known):
        return _planned(view, spec, run, replace(silent, judgement=_told(view, spec, trouble)), jobs)
    if view.job.spec.suspend:
        return fine
    return replace(fine, occasion=Occasion(Trigger.DATASET_CHANGED, found))


def _is_other(summary: Summary | None, read: PollOrder) -> bool:
    """Whether the data itself was compared, and is not what the run has read."""
    digest = summary.dataset.sha256 if summary and summary.dataset else None
    return digest is not None and read.sha256 is not None and digest != read.sha256


def _names_only(view: View, run: RunStatus, known: DatasetPollStatus) -> Finding | None:
    """Whether only the names of versions change: the newest run was begun by a look and read the same data as the one
    before it, and so was the one before, or the first look since finds another version again. One more run would not
    be the last."""
    read = [record for record in view.job.status.runs if record.dataset_sha256 and record.number <= run.number]
    vain = 0
    for before, after in reversed(list(pairwise(read))):
        if after.trigger is not Trigger.DATASET_CHANGED or after.dataset_sha256 != before.dataset_sha256:
            break
        vain += 1
    if not read or read[-1].number != run.number or vain < (1 if known.last_time is None else 2):
        return None
    begun = " and ".join(f"run {record.number}" for record in read[-vain:])
    text = f"Looks at the data began {begun} for the same data as before, and the sources name another version again."
    return Finding(FailureReason.SOURCE_UNSTEADY, text)


def _seen(known: DatasetPollStatus, job: Manifest, first: str | None) -> DatasetPollStatus:
    """After a look that succeeded. Its time is written with other news, or after a while."""
    moment = _moment(job)
    fresh = known.last_time is not None and moment - parse_time(known.last_time, moment) < NEWS
    kept = {"failures": 0, "fingerprint": known.fingerprint or first}
    if fresh and known == known.model_copy(update=kept):
        return known
    return known.model_copy(update={**kept, "last_time": stamp(moment)})


def _failed(
    view: View, spec: DatasetPollSpec, known: DatasetPollStatus, job: Manifest, pods: Sequence[Manifest]
) -> Polling:
    """After a look that failed; counted once, by its time."""
    moment = stamp(_moment(job))
    if known.last_time == moment and known.failures:
        return Polling(status=known, judgement=_told(view, spec))
    status = known.model_copy(update={"failures": known.failures + 1, "last_time": moment})
    finding = job_failure(job, pods, view.now)
    if finding.reason is FailureReason.DEADLINE_EXCEEDED:
        told = _told(view, spec)
        if told[1] == "False":  # why its pod waited was said meanwhile
            return Polling(status=status, judgement=told)
        text = f"The look at the data had not ended after {DEADLINE_SECONDS} seconds."
        finding = Finding(finding.reason, text, "Look whether its pod can start and reach the data.")
    return Polling(status=status, judgement=_told(view, spec, finding))


def _waiting(view: View, spec: DatasetPollSpec, silent: Polling, job: Manifest, pods: Sequence[Manifest]) -> Polling:
    """While a look is under way: nothing, unless it cannot begin."""
    if view.job.spec.suspend:
        return replace(silent, delete=_away(view, [job]))
    name = job["metadata"]["name"]
    finding = held_back(job, view.observed.workloads.get(name))
    if finding is None:
        finding = refused_pod(view.observed.refusals.get(name), pods, view.now) or pod_trouble(pods, view.now)
    again = look_again_after(pods, view.now)
    return replace(silent, judgement=_told(view, spec, finding), requeue_after=again)


def _planned(view: View, spec: DatasetPollSpec, run: RunStatus, polling: Polling, jobs: Sequence[Manifest]) -> Polling:
    """The next look: its Job when it is due, in place of the last one's."""
    if view.job.spec.suspend or polling.status is None:
        return polling
    failures = polling.status.failures
    begin, moment = next_look(
        view.job.metadata.uid, _last(view, run, polling.status, jobs), spec.period_seconds, failures, view.now
    )
    if begin > view.now:
        return replace(polling, requeue_after=(begin - view.now).total_seconds())
    made = poll_job(view.job, run, _read_by(run, view, polling.status), moment, view.settings)
    refused = view.observed.apply_failure
    if refused is not None and made["metadata"]["name"] in refused.message:
        polling = replace(polling, judgement=_told(view, spec, Finding(refused.reason, refused.message)))
    return replace(polling, apply=(*ensure_config_map(view, run), made), delete=_away(view, jobs))


def _last(view: View, run: RunStatus, known: DatasetPollStatus, jobs: Sequence[Manifest]) -> datetime:
    """When somebody has looked at the data: Prepare, or a look."""
    prepared = runs.stage_time(run, Stage.PREPARE)
    told = [known.last_time, run.start_time, prepared.completion_time if prepared else None]
    moments = [parse_time(time, view.now) for time in told if time] + [_moment(job) for job in jobs]
    return max(moments, default=view.now)


def _read_by(run: RunStatus, view: View, known: DatasetPollStatus) -> PollOrder:
    """What the run has read, as far as it is known: by Prepare's own words before the occasion that began the run."""
    record, data, failure = runs.record_of(view.job.status.runs, run.number), run.dataset, run.failure
    found = (data.fingerprint if data else None) or (record.fingerprint if record else None)
    if found is None and run.trigger is Trigger.DATASET_CHANGED:
        found = run.occasion
    unread = failure is not None and not failure.waiting and failure.reason is FailureReason.SOURCE_UNAVAILABLE
    if found is None:
        found = "" if unread else known.fingerprint
    return PollOrder(fingerprint=found, sha256=data.sha256 if data else record and record.dataset_sha256)
