"""What of finished runs is removed from the claim, by `output.retention`.

First the status says that a run's files go, and from then on it can be neither served nor gone on from; only a later
pass, which has read that, makes the Job that removes them. So nothing that is being removed is ever chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.conditions import RunResult, Stage
from finetune_api.job import FineTuneJob
from finetune_api.retention import CheckpointRetention, FilesState, Removal, RemovalOrder, RetentionSpec, RunFiles
from finetune_api.status import ModelStatus, RunRecord, RunStatus
from finetune_operator import names, runs
from finetune_operator.builders.removal_job import order_of, removal_job
from finetune_operator.diagnose import is_over, job_condition, job_failure, pod_trouble
from finetune_operator.plan import Manifest, ObjectRef
from finetune_operator.stages.view import View, is_deleting, owner_uids, reference
from finetune_operator.times import parse_time, stamp

RETRY_SECONDS = 3600.0
WRITTEN_SECONDS = 1.0
TAKEN_BACK = timedelta(hours=1)  # so long after an edit superseded a run, that run may go on from its checkpoint


@dataclass(frozen=True, slots=True)
class Retained:
    """The history with what becomes of each run's files, and what is to be written for it."""

    records: tuple[RunRecord, ...]
    apply: tuple[Manifest, ...] = ()
    delete: tuple[ObjectRef, ...] = ()
    requeue_after: float | None = None


def retain(view: View, run: RunStatus, records: tuple[RunRecord, ...], served: Sequence[int]) -> Retained:
    """One look. `served`: runs that are or shall be in service."""
    job = view.observed.jobs.get(names.removal_name(view.job.metadata.name))
    rule = view.job.spec.output.retention
    needed = _needed(view, run, records, served) if rule else {}
    # A run whose files are kept for somebody is not forgotten, for nothing would ever remove them then.
    history = [view.job.spec.serving.run, *served, *needed]
    staying = {record.number for record in _trimmed(view, records, history)}
    judged = tuple(_judged(view, rule, records, record, needed, staying) for record in records)
    judged = _trimmed(view, judged, history)
    if job is not None:
        return _heard(view, judged, job)
    # What this pass decides is written first; the cache takes our own write for no news, so it has to be looked for.
    decided = set(busy_with_files(judged)) - set(busy_with_files(view.job.status.runs))
    return Retained(judged, apply=_ordered(view, judged), requeue_after=WRITTEN_SECONDS if decided else None)


def _trimmed(view: View, records: tuple[RunRecord, ...], history: Sequence[int | None]) -> tuple[RunRecord, ...]:
    """Without those that are forgotten; never one whose files are being removed, and as long as there is room in the
    status not one that an edit superseded lately, which may be taken back."""
    limit, busy = view.settings.run_history_limit, busy_with_files(records)
    room = runs.STATUS_RECORDS - max(limit, len(set(history))) - len(busy)
    lately = [record.number for record in records if _superseded_lately(view, record)]
    return runs.trim(records, limit, history, [*busy, *lately[: max(0, room)]])


def _superseded_lately(view: View, record: RunRecord) -> bool:
    lately = view.now - parse_time(record.completion_time, view.now) < TAKEN_BACK
    return record.result is RunResult.SUPERSEDED and lately


def busy_with_files(records: Iterable[RunRecord]) -> list[int]:
    """Runs that must not be forgotten: their files are being removed."""
    return [record.number for record in records if runs.loses_files(record)]


def _needed(view: View, run: RunStatus, records: tuple[RunRecord, ...], served: Sequence[int]) -> dict[int, str]:
    """Runs whose files stay, whatever the rule says, and why."""
    found: dict[int, str] = {}
    newest = runs.newest_promoted(records)
    if newest is not None:
        found[newest.run] = "it is the run that was promoted last"
    waiting = [record.number for record in records if record.result is RunResult.AWAITING_APPROVAL]
    if waiting:  # of a schedule whose runs nobody approves all would stay, for ever
        found[waiting[-1]] = "it waits for approval"
    for other, number in _dependents(view, records):
        found[number] = f"{other} goes on from it"
    for number in _with_pods(view):
        found[number] = "a pod of it still runs"
    if run.continued_from is not None and run.continued_from.job == view.job.metadata.name:
        found[run.continued_from.model.run] = f"run {run.number} goes on from it"
    found[run.number] = "it is the present run"
    if view.job.spec.serving.run is not None:
        found[view.job.spec.serving.run] = "serving.run names it"
    return found | dict.fromkeys(served, "it is in service")


def _dependents(view: View, records: tuple[RunRecord, ...]) -> Iterator[tuple[str, int]]:
    """Jobs that go on from a run of this one, and that run. One that cannot be read may need any of them."""
    newest = runs.newest_promoted(records)
    for other in (view.job, *view.observed.dependents):
        if other is None:
            yield from (("another job, which cannot be read,", record.number) for record in records)
            continue
        yield from ((other.metadata.name, number) for number in _wanted_by(view.job, other, newest))


def _wanted_by(job: FineTuneJob, other: FineTuneJob, newest: ModelStatus | None) -> Iterator[int]:
    ref = other.spec.base_model.fine_tune_job
    if ref is not None and ref.name == job.metadata.name:
        yield from (number for number in (ref.run, newest.run if newest else None) if number is not None)
    begun = other.status.run.continued_from if other.status.run else None
    if begun is not None and begun.job == job.metadata.name:
        yield begun.model.run


def _with_pods(view: View) -> Iterator[int]:
    for manifest in (*_living(view), *view.observed.deployments.values()):
        number = names.run_of(manifest)
        if number is not None:
            yield number


def _living(view: View) -> list[Manifest]:
    return [pod for pod in (*view.observed.pods, *view.observed.former_pods) if not is_over(pod)]


def _judged(
    view: View,
    rule: RetentionSpec | None,
    records: tuple[RunRecord, ...],
    record: RunRecord,
    needed: dict[int, str],
    staying: set[int],
) -> RunRecord:
    files = record.files
    if files is not None and files.state is not FilesState.KEPT:
        return record  # it was decided
    if rule is None:
        known = files.checkpoints if files else None  # that was decided, or is done
        left = RunFiles(state=FilesState.KEPT, checkpoints=known) if known else None
        return record.model_copy(update={"files": left})
    checkpoints = (files.checkpoints if files else None) or _checkpoints(view, rule, record)
    kept = RunFiles(state=FilesState.KEPT, checkpoints=checkpoints)
    if _claim(record) is None:
        return _told(record, kept, "it is not known which claim its files are on")
    if record.number in needed:
        return _told(record, kept, needed[record.number])
    end = rule.ends(parse_time(record.completion_time, view.now))
    # What made no model takes no model's place: a source that is away for some nights must not remove what was good.
    later = sum(other.number > record.number and other.result in runs.FINISHED for other in records)
    why = _due(view, rule, record, end, later, record.number in staying)
    if why is not None:
        going = RunFiles(state=FilesState.REMOVING, message=f"removed, because {why}")
        return record.model_copy(update={"files": going, "model": None, "claim_name": _claim(record)})
    until = stamp(end) if end else None
    most = min(rule.keep_runs or view.settings.run_history_limit, view.settings.run_history_limit)
    text = f"until {max(1, most - later)} more runs have made a model" + (f", or {until}" if until else "")
    return _told(record, kept.model_copy(update={"until": until}), text)


def _told(record: RunRecord, files: RunFiles, why: str) -> RunRecord:
    text = f"kept {why}" if why.startswith("until ") else f"kept, because {why}"
    return record.model_copy(update={"files": files.model_copy(update={"message": text})})


def _due(
    view: View, rule: RetentionSpec, record: RunRecord, end: datetime | None, later: int, stays: bool
) -> str | None:
    """Why the files go now; None while they stay."""
    if rule.keep_runs is not None and later >= rule.keep_runs:
        return f"{later} runs with a model came after it, and output.retention.keepRuns is {rule.keep_runs}"
    if end is not None and end <= view.now:
        return f"it ended more than {rule.max_age_days} days ago"
    if not stays:
        return "the history keeps no more runs (runHistoryLimit)"
    return None


def _checkpoints(view: View, rule: RetentionSpec, record: RunRecord) -> FilesState | None:
    """Of a run that made its model they are of no use, and nothing goes on with those of a run that is not in hand:
    but an edit may be taken back, and the run that it superseded goes on."""
    current = view.job.status.run is not None and view.job.status.run.number == record.number
    useless = record.result in runs.FINISHED or not (current or _superseded_lately(view, record))
    trains = any(
        names.run_of(pod) == record.number and names.label(pod, names.LABEL_STAGE) == Stage.TRAIN.value
        for pod in _living(view)
    )
    if rule.checkpoints is CheckpointRetention.REMOVE and useless and not trains and _claim(record) is not None:
        return FilesState.REMOVING
    return None


def _claim(record: RunRecord) -> str | None:
    return record.claim_name or (names.claim_of(record.model.uri) if record.model else None)


def _ordered(view: View, judged: tuple[RunRecord, ...]) -> tuple[Manifest, ...]:
    """The Job for all that the written status says goes, of one claim at a time."""
    written = {record.number: record for record in view.job.status.runs if runs.loses_files(record)}
    going = [record for record in judged if record.number in written and runs.loses_files(record)]
    claims = [claim for record in going if (claim := _claim(written[record.number]))]
    if not claims:
        return ()
    order = RemovalOrder(
        runs=names.runs_folder(view.job.metadata.namespace, view.job.metadata.name),
        removals=[_removal(record) for record in going if _claim(written[record.number]) == claims[0]],
    )
    return (removal_job(view.job, claims[0], order, view.settings),)


def _removal(record: RunRecord) -> Removal:
    whole = record.files is not None and record.files.state in runs.GOING
    folder = names.folder_of_run(record.number, record.hash)
    return Removal(run=record.number, folder=folder, checkpoints_only=not whole)


def _heard(view: View, judged: tuple[RunRecord, ...], job: Manifest) -> Retained:
    """What the Job has come to. It is deleted when that is known, and the next one made when it is gone."""
    order = order_of(job)
    gone = (reference(job, view.job.metadata.namespace),)
    if is_deleting(job):
        return Retained(judged)
    if order is None:
        return Retained(judged, delete=gone)
    told = {(removal.run, removal.checkpoints_only) for removal in order.removals}
    if job_condition(job, "Complete") or job_condition(job, "SuccessCriteriaMet"):
        return Retained(tuple(_removed(record, told) for record in judged), delete=gone)
    uid = job["metadata"].get("uid")
    pods = [pod for pod in view.observed.pods if uid in owner_uids(pod)]
    failed = job_condition(job, "Failed")
    if failed:
        left = RETRY_SECONDS - (view.now - parse_time(failed.get("lastTransitionTime"), view.now)).total_seconds()
        text = f"not removed yet, tried again within the hour: {job_failure(job, pods, view.now).message}"
        words = tuple(_worded(record, told, text, failed=True) for record in judged)
        return Retained(words, delete=gone if left <= 0 else (), requeue_after=max(left, 1.0))
    trouble = pod_trouble(pods, view.now)
    text = f"being removed; it waits: {trouble.message}" if trouble else "being removed"
    return Retained(tuple(_worded(record, told, text) for record in judged))


def _removed(record: RunRecord, told: set[tuple[int, bool]]) -> RunRecord:
    files = record.files
    if files is None:
        return record
    if (record.number, False) in told and files.state in runs.GOING:
        files = files.model_copy(update={"state": FilesState.REMOVED, "message": "its files were removed"})
    elif (record.number, True) in told and files.checkpoints in runs.GOING:
        files = files.model_copy(update={"checkpoints": FilesState.REMOVED})
    return record.model_copy(update={"files": files})


def _worded(record: RunRecord, told: set[tuple[int, bool]], text: str, *, failed: bool = False) -> RunRecord:
    """With what is known of its removal. Why a run stays is said rather than that its checkpoints are going."""
    files, state = record.files, FilesState.REMOVAL_FAILED if failed else FilesState.REMOVING
    if files is None or not runs.loses_files(record):
        return record
    if (record.number, False) in told and files.state in runs.GOING:
        files = files.model_copy(update={"state": state, "message": text[:512]})
    elif (record.number, True) in told and files.checkpoints in runs.GOING:
        files = files.model_copy(update={"checkpoints": state})
    return record.model_copy(update={"files": files})
