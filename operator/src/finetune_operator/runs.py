"""Which run the spec asks for, how far it is, and what is remembered of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from finetune_api.conditions import RunResult, Stage, Trigger
from finetune_api.job import RECURRING, FineTuneJob, content_hash, occasion_hash, run_hash
from finetune_api.retention import FilesState
from finetune_api.status import ModelStatus, RunRecord, RunStatus, StageTime
from finetune_operator import names
from finetune_operator.conditions import shorten
from finetune_operator.plan import Manifest, Observed

GOING = frozenset({FilesState.REMOVING, FilesState.REMOVAL_FAILED})
REMOVED = "is no more: its files were removed by output.retention"  # of a run, for messages
STATUS_RECORDS = 20  # status.runs' own bound
RECORD_MESSAGE = 512
ALLOWED = (RunResult.PROMOTED, RunResult.ROLLED_BACK)  # passed their gate, and might answer
FINISHED = (*ALLOWED, RunResult.GATE_FAILED, RunResult.AWAITING_APPROVAL)
JOB_STAGES = tuple(stage for stage in Stage if stage is not Stage.SERVE)
BESIDE = (Stage.PACKAGE, Stage.SERVE)  # what goes on after a run is judged


@dataclass(frozen=True, slots=True)
class Occasion:
    """What asks for a run of inputs that have been trained already: the trigger, and which time it is."""

    trigger: Trigger
    text: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The run that the spec asks for, and the history as it stands then."""

    run: RunStatus
    records: tuple[RunRecord, ...]


def select(job: FineTuneJob, observed: Observed, now: str, occasion: Occasion | None = None) -> Selection:
    """Without an occasion the run in hand while the spec asks for it; else a finished run with the same inputs; else
    one that was superseded, which goes on from its checkpoint; else a new one. With an occasion a new one."""
    wanted = run_hash(job.spec)
    current, records = job.status.run, tuple(job.status.runs)
    if current is not None and occasion is None and is_of(wanted, current):
        return Selection(current, records)
    if current is not None:
        records = _supersede(records, current, now, occasion)
    earlier = _finished_with(records, wanted) if occasion is None else None
    if earlier is not None:
        again = earlier.model_copy(update={"taken_up_time": now})
        return Selection(_adopted(again), tuple(again if record is earlier else record for record in records))
    left = _superseded_with(records, wanted) if occasion is None else None
    if left is not None:
        return Selection(_going_on(left, now), records)
    begun = _begun_with(observed, wanted, _highest_known(job))
    number, occasion = begun or (_highest(job, observed) + 1, occasion)
    return Selection(_started(job, observed, number, occasion, now), records)


def _started(job: FineTuneJob, observed: Observed, number: int, occasion: Occasion | None, now: str) -> RunStatus:
    trigger = occasion.trigger if occasion else _trigger(job, observed)
    text = occasion.text if occasion else job.spec.rerun_token if trigger is Trigger.RERUN else None
    return RunStatus(
        number=number,
        hash=occasion_hash(run_hash(job.spec), trigger, text),
        trigger=trigger,
        occasion=text,
        start_time=now,
    )


def occasion_of(run: RunStatus | RunRecord) -> Occasion | None:
    """The occasion of a run that a change of the spec did not start."""
    return Occasion(run.trigger, run.occasion or "") if run.trigger in RECURRING else None


def is_of(wanted: str, run: RunStatus | RunRecord) -> bool:
    """Whether these are the run's inputs, whatever its occasion."""
    return run.hash == occasion_hash(wanted, run.trigger, run.occasion)


def is_under_way(run: RunStatus, records: Iterable[RunRecord]) -> bool:
    """Whether the run has not ended yet, or is measured again or packaged."""
    if ended_with_failure(run):
        return False
    known = any(record.number == run.number for record in records)
    packaging = run.package is not None and run.package.failure is None and not is_done(run, Stage.PACKAGE)
    return not known or not is_done(run, Stage.EVALUATE) or packaging


def _supersede(
    records: tuple[RunRecord, ...], run: RunStatus, now: str, occasion: Occasion | None
) -> tuple[RunRecord, ...]:
    """A run that has not ended by itself ends because another one is asked for."""
    if any(record.number == run.number for record in records):
        return records
    what = f"{occasion.trigger} {occasion.text} came" if occasion else "The spec changed"
    return remember(records, run, RunResult.SUPERSEDED, f"{what} before the run had ended.", now)


def remember(
    records: tuple[RunRecord, ...], run: RunStatus, result: RunResult, message: str, now: str
) -> tuple[RunRecord, ...]:
    """The history with this run in it, by number. The time stays while the result does."""
    old = record_of(records, run.number)
    evaluation, data = run.evaluation, run.dataset
    record = RunRecord(
        number=run.number,
        hash=run.hash,
        trigger=run.trigger,
        occasion=run.occasion,
        result=result,
        completion_time=old.completion_time if old and old.result == result else now,
        loss=evaluation.tuned.loss if evaluation and evaluation.tuned else None,
        base_loss=evaluation.base.loss if evaluation and evaluation.base else None,
        message=shorten(message, RECORD_MESSAGE),
        continued_from=run.continued_from,
        model=run.model,
        cost=run.cost,
        evaluation=evaluation,
        rollback=old.rollback if old else None,
        taken_up_time=old.taken_up_time if old else None,
        claim_name=run.claim_name,
        files=old.files if old else None,
        fingerprint=data.fingerprint if data else old and old.fingerprint,
        dataset_sha256=data.sha256 if data else old and old.dataset_sha256,
    )
    others = [other for other in records if other.number != run.number]
    return tuple(sorted([*others, record], key=lambda entry: entry.number))


def forget(records: tuple[RunRecord, ...], number: int) -> tuple[RunRecord, ...]:
    """The history without this run: it goes on."""
    return tuple(record for record in records if record.number != number)


def trim(
    records: tuple[RunRecord, ...], limit: int, keep: Iterable[int | None], besides: Iterable[int] = ()
) -> tuple[RunRecord, ...]:
    """The newest records, at most `limit`, and those in `keep` whatever their age; those in `besides` take no room.
    Superseded runs are forgotten first, then failed ones but for the last run: neither ten edits in a row nor a week of
    bad nights may push out what was measured."""
    extra = set(besides)
    aside = tuple(record for record in records if record.number in extra)
    records = tuple(record for record in records if record.number not in extra)
    limit = max(1, min(limit, STATUS_RECORDS))
    needed = set(keep)
    kept = [record for record in records if record.number in needed]
    room = max(0, limit - len(kept))
    others = sorted(
        (record for record in records if record.number not in needed),
        key=lambda record: (_worth(record, records[-1].number), record.number),
    )
    found = [*aside, *kept, *(others[-room:] if room else [])]
    return tuple(sorted(found, key=lambda record: record.number))[-STATUS_RECORDS:]


def _worth(record: RunRecord, last: int) -> int:
    """0: forgotten first. How the last run ended is always told."""
    if record.result is RunResult.SUPERSEDED:
        return 0
    return 1 if record.result is RunResult.FAILED and record.number != last else 2


def model_of(job: FineTuneJob, records: Iterable[RunRecord], run: RunStatus, number: int) -> ModelStatus | None:
    """The model of a run, whether promoted or not."""
    known = [run.model, *(record.model for record in records), job.status.model]
    return next((model for model in known if model is not None and model.run == number), None)


def newest_promoted(records: Iterable[RunRecord]) -> ModelStatus | None:
    """The model of the run that was promoted last, or was promoted once and asked for again since: after a commit was
    taken back its run must not answer once more, only because a next one trains."""
    promoted = [record for record in records if record.result is RunResult.PROMOTED and record.model]
    newest = max(promoted, key=lambda record: (_wanted_since(record), record.number), default=None)
    return newest.model if newest else None


def _wanted_since(record: RunRecord) -> str:
    return max(record.taken_up_time or "", record.completion_time or "")


def is_promoted(records: Iterable[RunRecord], number: int) -> bool:
    """Whether the run passed its gate once."""
    return any(record.number == number and record.result is RunResult.PROMOTED for record in records)


def loses_files(record: RunRecord) -> bool:
    """Whether files of the run are being removed, all or its checkpoints alone."""
    return record.files is not None and (record.files.state in GOING or record.files.checkpoints in GOING)


def is_removed(record: RunRecord) -> bool:
    """Whether the run's files are gone, or are being removed."""
    return record.files is not None and record.files.state is not FilesState.KEPT


def record_of(records: Iterable[RunRecord], number: int) -> RunRecord | None:
    """The run in the history."""
    return next((record for record in records if record.number == number), None)


def stage_time(run: RunStatus, stage: Stage) -> StageTime | None:
    """When the stage started and ended."""
    return next((entry for entry in run.stages if entry.stage is stage), None)


def is_done(run: RunStatus, stage: Stage) -> bool:
    """Whether the stage's result is in the status. Its Job is not needed any more then."""
    entry = stage_time(run, stage)
    return entry is not None and entry.completion_time is not None


def with_time(run: RunStatus, stage: Stage, *, start: str | None = None, completion: str | None = None) -> RunStatus:
    """The run with the stage's times. A start that is known already stays."""
    old = stage_time(run, stage) or StageTime(stage=stage)
    entry = StageTime(
        stage=stage, start_time=old.start_time or start, completion_time=completion or old.completion_time
    )
    others = [other for other in run.stages if other.stage is not stage]
    return run.model_copy(update={"stages": [*others, entry]})


def without_time(run: RunStatus, stage: Stage) -> RunStatus:
    """The run as if the stage had never begun."""
    return run.model_copy(update={"stages": [entry for entry in run.stages if entry.stage is not stage]})


def ended_with_failure(run: RunStatus, stage: Stage | None = None) -> bool:
    """Whether a stage's Job ended the run, or for one of the stages beside it (`BESIDE`) itself. Trouble of those never
    ends a run: it is judged anew in each pass."""
    failure = run.failure
    ended = failure is not None and not failure.waiting
    return ended and failure is not None and (failure.stage is stage or failure.stage not in BESIDE)


def _finished_with(records: tuple[RunRecord, ...], wanted: str) -> RunRecord | None:
    """The newest with these inputs that was promoted: going back goes back to what answered then. Without one the
    newest that ended."""
    found = [record for record in records if is_of(wanted, record) and record.result in FINISHED and record.model]
    return max(found, key=lambda record: (record.result is RunResult.PROMOTED, record.number), default=None)


def _superseded_with(records: tuple[RunRecord, ...], wanted: str) -> RunRecord | None:
    """The newest with these inputs that another one put an end to, and whose files nobody is removing."""
    found = (record for record in reversed(records) if record.result is RunResult.SUPERSEDED and is_of(wanted, record))
    return next((record for record in found if not is_removed(record) and not loses_files(record)), None)


def _going_on(record: RunRecord, now: str) -> RunStatus:
    """A superseded run in hand again: the edit was taken back. Its stages find on the claim what they had done."""
    return RunStatus(
        number=record.number,
        hash=record.hash,
        trigger=record.trigger,
        occasion=record.occasion,
        start_time=now,
        continued_from=record.continued_from,
        claim_name=record.claim_name,
        cost=record.cost,
    )


def _adopted(record: RunRecord) -> RunStatus:
    """A finished run in hand again: the user went back to an earlier commit. Nothing is trained anew."""
    return RunStatus(
        number=record.number,
        hash=record.hash,
        trigger=record.trigger,
        occasion=record.occasion,
        stages=[
            StageTime(stage=stage, completion_time=record.completion_time) for stage in Stage if stage not in BESIDE
        ],
        evaluation=record.evaluation,
        continued_from=record.continued_from,
        model=record.model,
        cost=record.cost,
    )


def _begun_with(observed: Observed, wanted: str, above: int) -> tuple[int, Occasion | None] | None:
    """Number and occasion of a run with these inputs whose children exist but which the status does not know yet:
    the pass that made them was cut short before it wrote the status."""
    children: list[Mapping[str, Manifest]] = [observed.config_maps, observed.jobs]
    for manifests in children:
        for manifest in manifests.values():
            number = names.run_of(manifest)
            occasion = _made_for(manifest)
            identity = occasion_hash(wanted, occasion.trigger, occasion.text) if occasion else wanted
            same = names.annotation(manifest, names.ANNOTATION_RUN_HASH) == identity
            if same and number is not None and number > above:
                return number, occasion
    return None


def _made_for(manifest: Manifest) -> Occasion | None:
    """The occasion of a run, as its ConfigMap has it."""
    trigger = names.annotation(manifest, names.ANNOTATION_TRIGGER)
    known = next((each for each in RECURRING if each.value == trigger), None)
    return Occasion(known, names.annotation(manifest, names.ANNOTATION_OCCASION) or "") if known else None


def _highest_known(job: FineTuneJob) -> int:
    known = [record.number for record in job.status.runs]
    known += [part.run for part in (job.status.model,) if part]
    known += [job.status.run.number] if job.status.run else []
    return max(known, default=0)


def _highest(job: FineTuneJob, observed: Observed) -> int:
    seen = [_highest_known(job)]
    for manifests in (observed.config_maps, observed.jobs, observed.deployments):
        for manifest in manifests.values():
            seen.append(names.run_of(manifest) or 0)
    return max(seen)


def _trigger(job: FineTuneJob, observed: Observed) -> Trigger:
    previous = job.status.run
    if previous is None:
        return Trigger.CREATED
    config_map = observed.config_maps.get(names.run_name(job.metadata.name, previous.number), {})
    # Without a token, which is what an earlier version left us to tell by, both hashes are the same.
    contents = names.annotation(config_map, names.ANNOTATION_CONTENT_HASH) or previous.hash
    return Trigger.RERUN if contents == content_hash(job.spec) else Trigger.SPEC_CHANGED
