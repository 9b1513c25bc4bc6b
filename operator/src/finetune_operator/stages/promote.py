"""Which model shall answer: the gate's judgement, the approval, the history, and the user's pin."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.conditions import FailureReason, GateVerdict, RunResult
from finetune_api.gate import judge
from finetune_api.promotion import PromotionMode
from finetune_api.status import ModelStatus, RunRecord, RunStatus
from finetune_operator import runs
from finetune_operator.conditions import shorten
from finetune_operator.diagnose import Finding
from finetune_operator.runs import ended_with_failure
from finetune_operator.stages.measurement import is_measured
from finetune_operator.stages.rollout import explained, rolled_back, with_outcome
from finetune_operator.stages.view import View

REASON_LENGTH, REASONS = 256, 16  # bounds of status.gate.reasons
GONE = "Set serving.run to another run, or remove it; going back to the commit of that run trains it anew."


@dataclass(frozen=True, slots=True)
class Promotion:
    """The run with its verdict, the history with the run's result, and the model that shall answer."""

    run: RunStatus
    records: tuple[RunRecord, ...]
    wanted: ModelStatus | None
    finding: Finding | None = None


def promote(view: View, run: RunStatus, records: tuple[RunRecord, ...]) -> Promotion:
    """A run that passed its gate once stays promoted: a stricter gate is for later runs, `serving.run` for this."""
    run = _judged(view, run)
    records = with_outcome(view, _approved(view, run, _recorded(view, run, records)))
    pinned = view.job.spec.serving.run
    failed = runs.record_of(records, run.number if pinned is None else pinned)
    rolled = failed is not None and (pinned is not None or failed.result is RunResult.ROLLED_BACK)
    if rolled and failed is not None and failed.rollback is not None:
        former = view.job.status.model or runs.newest_promoted(records)
        return Promotion(run, records, former, explained(failed, failed.rollback))
    if pinned is None:
        return Promotion(run, records, _newest(view, run, records))
    model = runs.model_of(view.job, records, run, pinned)
    unfinished = pinned == run.number and not ended_with_failure(run) and run.model is None
    if model is not None or unfinished:
        return Promotion(run, records, model or view.job.status.model)
    return Promotion(run, records, view.job.status.model, _not_found(pinned, run, records))


def _not_found(pinned: int, run: RunStatus, records: tuple[RunRecord, ...]) -> Finding:
    known = sorted({record.number for record in records if record.model} | ({run.number} if run.model else set()))
    record, why, advice = runs.record_of(records, pinned), "made no model that is known here", ""
    if record is not None and runs.is_removed(record):
        why, advice = runs.REMOVED, GONE
    elif record is None and pinned > run.number:
        why = f"has not begun, the newest is {run.number}"
    elif record is None and pinned < min((each.number for each in records), default=0):
        why = "is not in the history any more, which keeps no more runs (runHistoryLimit)"
        advice = GONE
    text = f"serving.run is {pinned}, but run {pinned} {why}; there are {known or 'none'}."
    return Finding(FailureReason.RUN_NOT_FOUND, text, advice)


def put_back(view: View, promotion: Promotion, finding: Finding) -> Promotion | None:
    """The same after the wanted run's servers have failed: what was in service is wanted again. None where nothing
    was."""
    wanted = promotion.wanted
    records = rolled_back(view, promotion.records, wanted, finding) if wanted else None
    return promote(view, promotion.run, records) if records is not None else None


def _newest(view: View, run: RunStatus, records: tuple[RunRecord, ...]) -> ModelStatus | None:
    if run.model is not None and runs.is_promoted(records, run.number):
        return run.model  # also when it is an old one: the user went back to its commit
    allowed = [record for record in records if record.result in runs.ALLOWED]
    if allowed and allowed[-1].rollback is not None and view.job.status.model is not None:
        return view.job.status.model  # not an older run that was promoted and never got into service
    return runs.newest_promoted(records) or view.job.status.model


def _judged(view: View, run: RunStatus) -> RunStatus:
    if not is_measured(view, run) or run.evaluation is None:
        return run
    gate = judge(view.job.spec.evaluation.gate.rules_, run.evaluation)
    reasons = [shorten(reason, REASON_LENGTH) for reason in gate.reasons[:REASONS]]
    return run.model_copy(update={"gate": gate.model_copy(update={"reasons": reasons})})


def _recorded(view: View, run: RunStatus, records: tuple[RunRecord, ...]) -> tuple[RunRecord, ...]:
    """The history with how this run ended, or without it while it goes on."""
    if run.evaluation is not None and not is_measured(view, run):
        return records  # it is measured again: what is known of it stands until then, also when that fails
    if ended_with_failure(run) and run.failure:
        message = f"{run.failure.reason}: {run.failure.message}"
        return runs.remember(records, run, RunResult.FAILED, message, view.time)
    if run.gate is None:
        return records if is_measured(view, run) else runs.forget(records, run.number)
    reasons = "; ".join(run.gate.reasons)
    if run.gate.verdict is GateVerdict.PASSED:
        old = runs.record_of(records, run.number)
        allowed = old is not None and old.result in runs.ALLOWED
        result = old.result if old is not None and allowed else RunResult.AWAITING_APPROVAL
        return runs.remember(records, run, result, reasons, view.time)
    if runs.is_promoted(records, run.number):
        return records
    return runs.remember(records, run, RunResult.GATE_FAILED, reasons, view.time)


def _approved(view: View, run: RunStatus, records: tuple[RunRecord, ...]) -> tuple[RunRecord, ...]:
    """The history with those promoted that passed their gate and may answer: at once, or by approval, which may also
    come for an earlier run than the newest. What was not asked for by name, and is not the run in hand, ended when it
    did: it answers no sooner than one that was approved since."""

    def allowed(record: RunRecord) -> bool:
        if record.result is not RunResult.AWAITING_APPROVAL or record.model is None:
            return False
        return view.job.spec.promotion.allows(record.number, record.model.sha256 or "")

    def promoted(record: RunRecord) -> RunRecord:
        named = view.job.spec.promotion.mode is PromotionMode.MANUAL or record.number == run.number
        time = view.time if named else record.completion_time
        return record.model_copy(update={"result": RunResult.PROMOTED, "completion_time": time})

    return tuple(promoted(record) if allowed(record) else record for record in records)
