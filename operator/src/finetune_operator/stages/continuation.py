"""Which model a run goes on from, where its base is what another run has made: found once, when the run begins.

Until then nothing is made for the run, and every pass looks anew: it begins by itself when the other run is promoted.
Afterwards the other job is not asked again. It may be deleted: models outlive jobs.
"""

from __future__ import annotations

from collections.abc import Iterable

from finetune_api.base_model import ContinueMode, FineTuneJobRef
from finetune_api.combinations import ADAPTER_FIELDS, CONTINUABLE
from finetune_api.conditions import FailureReason, RunResult, Stage
from finetune_api.job import FineTuneJob
from finetune_api.lineage import MOST_ANCESTORS, ContinuedFrom, ModelStatus
from finetune_api.method import MethodSpec
from finetune_api.status import RunRecord, RunStatus
from finetune_api.tasks import DECODERS, Task
from finetune_operator import names
from finetune_operator.builders.run_config_map import parse_run_config
from finetune_operator.diagnose import Finding, to_failure
from finetune_operator.runs import REMOVED, is_done, is_promoted, is_removed, newest_promoted
from finetune_operator.stages.view import Step, View

FIELD = "baseModel.fineTuneJob"


def begin(view: View, run: RunStatus, records: tuple[RunRecord, ...]) -> Step:
    """The run with the model that it goes on from, or why it cannot begin yet, or at all."""
    ref = view.job.spec.base_model.fine_tune_job
    if ref is None or run.continued_from is not None or is_done(run, Stage.PREPARE):
        return Step(run, done=True)
    known = parse_run_config(view.observed.config_maps.get(names.run_name(view.job.metadata.name, run.number)))
    found = known.continued_from if known and known.continued_from else _resolve(view, run, ref, records)
    if isinstance(found, ContinuedFrom):
        return Step(run.model_copy(update={"continued_from": found, "failure": None}), done=True)
    waiting = found.reason is FailureReason.BASE_NOT_PROMOTED
    failure = to_failure(found, Stage.PREPARE, view.time, waiting=waiting, previous=run.failure)
    return Step(run.model_copy(update={"failure": failure}))


def _resolve(
    view: View, run: RunStatus, ref: FineTuneJobRef, records: tuple[RunRecord, ...]
) -> ContinuedFrom | Finding:
    own = ref.name == view.job.metadata.name
    origin = view.observed.origin
    other = view.job if own else origin.job
    if other is None:
        return _not_yet(f"{FIELD}: there is no FineTuneJob {ref.name!r} in this namespace.")
    history = tuple(
        record for record in (records if own else other.status.runs) if not own or record.number < run.number
    )
    found = _model(ref, other, history)
    if own and isinstance(found, Finding):
        return _refused(f"{FIELD}: {_first(found)} A run goes on only from an earlier one of its own job.")
    if isinstance(found, Finding):
        cycle = found.reason is FailureReason.BASE_NOT_PROMOTED and view.job.metadata.name in origin.waits_for
        return _circle(view.job.metadata.name, ref.name, origin.waits_for) if cycle else found
    return _continued(view.job, other, found, ref)


def _model(ref: FineTuneJobRef, other: FineTuneJob, history: tuple[RunRecord, ...]) -> ModelStatus | Finding:
    """The model of the wanted run, or of the newest promoted one."""
    if ref.run is None:
        newest = newest_promoted(history)
        return newest or _not_yet(f"{FIELD}: {ref.name} has no promoted run yet.")
    record = next((record for record in history if record.number == ref.run), None)
    if record is not None and record.model is not None and is_promoted(history, ref.run):
        return record.model
    current = other.status.run.number if other.status.run else 0
    if record is None and ref.run >= current:
        return _not_yet(f"{FIELD}: run {ref.run} of {ref.name} is not promoted yet.")
    what = _ending(record)
    return _refused(f"{FIELD}: run {ref.run} of {ref.name} {what}; {_choices(history)}.")


def _ending(record: RunRecord | None) -> str:
    if record is None:
        return "is not known any more"
    if is_removed(record):
        return REMOVED
    if record.result is RunResult.GATE_FAILED:
        return "did not pass its gate"
    if record.result is RunResult.ROLLED_BACK:
        return "was rolled back"
    return "was superseded" if record.result is RunResult.SUPERSEDED else "failed"


def _choices(history: Iterable[RunRecord]) -> str:
    promoted = [str(record.number) for record in history if record.result is RunResult.PROMOTED]
    return f"promoted are {', '.join(promoted)}" if promoted else "none is promoted"


def _continued(
    job: FineTuneJob, other: FineTuneJob, model: ModelStatus, ref: FineTuneJobRef
) -> ContinuedFrom | Finding:
    task, former = job.spec.task, model.task or other.spec.task
    if not _same_family(task, former):
        return _refused(
            f"{FIELD}: run {model.run} of {ref.name} was tuned for {former}, which {task} cannot go on from.",
            f"Name a job of the task {task}, or give baseModel.source.",
        )
    if len(model.lineage) >= MOST_ANCESTORS:
        return _refused(
            f"{FIELD}: run {model.run} of {ref.name} is built on {len(model.lineage)} runs already.",
            "Export it (output.exports) and begin anew with that as baseModel.source.",
        )
    adapter = model.kind == "Adapter" and model.method in (None, *CONTINUABLE)
    if ref.mode is ContinueMode.CONTINUE and not adapter:
        return _refused(
            f"{FIELD}: run {model.run} of {ref.name} is a whole model, and mode Continue goes on with an adapter.",
            "Set baseModel.fineTuneJob.mode to Stack.",
        )
    mode = ref.mode
    if mode is ContinueMode.AUTO:
        mode = ContinueMode.CONTINUE if adapter and _asks_nothing(job.spec.method) else ContinueMode.STACK
    return ContinuedFrom(job=ref.name, mode=mode, model=model)


def _asks_nothing(method: MethodSpec) -> bool:
    """Whether the adapter may be the one that is there."""
    return method.type in CONTINUABLE and all(getattr(method, name) is None for name in ADAPTER_FIELDS.values())


def _same_family(one: Task, other: Task) -> bool:
    return one is other or (one in DECODERS and other in DECODERS)


def _circle(name: str, first: str, waits_for: tuple[str, ...]) -> Finding:
    way = [name, first, *waits_for[: waits_for.index(name)], name]
    return _refused(
        f"{FIELD}: the jobs wait for each other: {' -> '.join(way)}.", "Give one of them a baseModel.source."
    )


def _first(finding: Finding) -> str:
    return finding.message.removeprefix(f"{FIELD}: ")


def _not_yet(message: str) -> Finding:
    return Finding(FailureReason.BASE_NOT_PROMOTED, message)


def _refused(message: str, advice: str = "") -> Finding:
    return Finding(FailureReason.SPEC_INVALID, message, advice)
