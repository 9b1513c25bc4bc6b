"""Why `promotion.approved` approves nothing: said, for whoever wrote it waits for a model that will not answer."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_api.conditions import RunResult
from finetune_api.promotion import Approval
from finetune_api.status import RunRecord, RunStatus
from finetune_operator import runs


def approval_in_vain(approved: Approval | None, run: RunStatus, records: Iterable[RunRecord]) -> str:
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
    own = (record.model.sha256 or "")[:12]
    return f"but the digest {approved.digest[:12]} is not that of its model, which is {own!r}"
