"""What waits for approval, and why `promotion.approved` approves nothing: whoever wrote it waits for a model that will
not answer."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.conditions import RunResult
from finetune_api.promotion import Approval
from finetune_api.status import ModelStatus, RunRecord, RunStatus
from finetune_operator import runs


def how_to_approve(number: int, model: ModelStatus | None) -> str:
    """What the user has to write."""
    # In quotes: YAML takes 123456789012 for a number, and kubectl 1234567e8901, too.
    digest = ((model and model.sha256) or "")[:12]
    return f'waits for approval: set promotion.approved to {{run: {number}, digest: "{digest}"}}.'


def earlier_waits(run: RunStatus, wanted: ModelStatus | None, records: Sequence[RunRecord]) -> str:
    """A sentence on the newest run before the present one that waits, where it is newer than what shall answer; empty
    where there is none."""
    between = range(wanted.run + 1 if wanted else 1, run.number)
    waiting = [record for record in records if record.result is RunResult.AWAITING_APPROVAL and record.model]
    newest = next((record for record in reversed(waiting) if record.number in between), None)
    return f"Run {newest.number} {how_to_approve(newest.number, newest.model)}" if newest else ""


def approval_in_vain(approved: Approval | None, run: RunStatus, records: Sequence[RunRecord]) -> str:
    """A sentence; empty where the approval was heeded, is for a run that goes on, or for one that is long forgotten."""
    if approved is None:
        return ""
    record = runs.record_of(records, approved.run)
    why = _beyond(approved.run, run) if record is None else _unheeded(approved, record)
    return f"promotion.approved names run {approved.run}, {why}: it approves nothing." if why else ""


def _beyond(number: int, run: RunStatus) -> str:
    return f"which is not there yet (the newest is {run.number})" if number > run.number else ""


def _unheeded(approved: Approval, record: RunRecord) -> str:
    if record.result in runs.ALLOWED:
        return ""
    if record.result is RunResult.GATE_FAILED:
        return "which did not pass its gate"
    if runs.is_removed(record):
        return "whose files were removed by output.retention"
    if record.model is None:
        return "which made no model"
    own = (record.model.sha256 or "")[: len(approved.digest)]
    return f"but the digest {approved.digest} is not that of its model, which is {own!r}"
