"""How a promoted run's servers fare: whether they take over, and what becomes of the run where they do not.

A rollout fails by an answer that will not do, or when a server is not ready in time. Then the run that was in
service, whose servers never stopped, is put back. The failed one is not tried again by itself: only when the user
changes how it is served, or names it in serving.run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_api.conditions import FailureReason, RunResult
from finetune_api.job import rollout_hash
from finetune_api.status import ModelStatus, Rollback, RunRecord
from finetune_operator import runs
from finetune_operator.advice import advice_for
from finetune_operator.conditions import sentence, shorten
from finetune_operator.diagnose.facts import is_ready, pod_condition
from finetune_operator.finding import Finding
from finetune_operator.plan import Manifest
from finetune_operator.stages.view import View
from finetune_operator.times import parse_time

MESSAGE = 1024
# Said by the server itself of what it serves: to start it once more would end in the same way.
FINAL = frozenset({FailureReason.SMOKE_FAILED, FailureReason.ARTIFACT_INVALID})
# What the cluster owes a server before it can show what it is worth: waited for, however long.
OWED = frozenset(
    {
        FailureReason.UNSCHEDULABLE,
        FailureReason.IMAGE_PULL,
        FailureReason.NODE_LOST,
        FailureReason.STORAGE_UNBOUND,
        FailureReason.QUOTA_EXCEEDED,
        FailureReason.POD_REFUSED,
        FailureReason.CONFIG_MISSING,
        FailureReason.NAME_CONFLICT,
    }
)


def failure_of(view: View, deployment: Manifest, pods: Sequence[Manifest], finding: Finding | None) -> Finding | None:
    """Why the Deployment, which is as it is wanted, will not get its new servers (`pods`) ready; None while it may. A
    status that is about an older Deployment says nothing of them."""
    status = deployment.get("status") or {}
    seen = int(status.get("observedGeneration") or 0) >= int(deployment["metadata"].get("generation") or 0)
    if not seen or (finding is not None and finding.reason in OWED):
        return None
    if finding is not None and finding.reason in FINAL:
        return finding
    left = seconds_left(view, pods)
    if left is None or left > 0:
        return None
    return finding or Finding(FailureReason.NOT_READY, f"The server was not ready within {_deadline(view)} seconds.")


def seconds_left(view: View, pods: Sequence[Manifest]) -> float | None:
    """Until a server that is not ready is late: counted from when it got its node, for what it waited before is not its
    own fault. Kubernetes counts the Deployment's progress from its beginning. None: nobody is waited for."""
    waiting = [pod for pod in pods if not is_ready(pod)]
    return min((_deadline(view) - (view.now - _begun(pod, view.now)).total_seconds() for pod in waiting), default=None)


def _deadline(view: View) -> int:
    return view.job.spec.serving.progress_deadline_seconds


def _begun(pod: Manifest, now: datetime) -> datetime:
    """When the pod was bound to its node; a pod that tells nothing of that, when it was made."""
    scheduled = pod_condition(pod, "PodScheduled", "True") or {}
    return parse_time(scheduled.get("lastTransitionTime") or pod["metadata"].get("creationTimestamp"), now)


def rolled_back(
    view: View, records: tuple[RunRecord, ...], wanted: ModelStatus, finding: Finding
) -> tuple[RunRecord, ...] | None:
    """The history with the wanted run rolled back; None where no other run was in service, so that there is nothing to
    go back to."""
    former, record = view.job.status.model, runs.record_of(records, wanted.run)
    if former is None or former.run == wanted.run or record is None:
        return None
    rollback = Rollback(
        reason=finding.reason,
        message=shorten(finding.message, MESSAGE),
        time=view.time,
        pinned=view.job.spec.serving.run == wanted.run,
        settings_hash=rollout_hash(view.job.spec.serving),
    )
    return tuple(
        each.model_copy(update={"rollback": rollback}) if each.number == wanted.run else each for each in records
    )


def with_outcome(view: View, records: tuple[RunRecord, ...]) -> tuple[RunRecord, ...]:
    """The history with what rollbacks mean now: a promoted run that was rolled back is promoted no more, until it shall
    be tried again."""
    return tuple(_judged(view, record) for record in records)


def _judged(view: View, record: RunRecord) -> RunRecord:
    rollback = record.rollback
    if rollback is None:
        return record
    if _again(view, record.number, rollback):
        promoted = {"result": RunResult.PROMOTED, "message": ""} if record.result is RunResult.ROLLED_BACK else {}
        return record.model_copy(update={"rollback": None, **promoted})
    pinned = rollback.pinned and view.job.spec.serving.run == record.number
    update: dict[str, object] = {"rollback": rollback.model_copy(update={"pinned": pinned})}
    if record.result in runs.ALLOWED:
        message = shorten(f"{rollback.reason}: {rollback.message}", runs.RECORD_MESSAGE)
        update |= {"result": RunResult.ROLLED_BACK, "message": message}
    return record.model_copy(update=update)


def _again(view: View, number: int, rollback: Rollback) -> bool:
    """Whether the user has done something since by which it may go otherwise, or asks for it by name."""
    named = view.job.spec.serving.run == number and not rollback.pinned
    return named or rollback.settings_hash != rollout_hash(view.job.spec.serving)


def explained(record: RunRecord, rollback: Rollback) -> Finding:
    """What the status says of it."""
    text = f"Run {record.number} did not take over and was rolled back. {rollback.reason}: {sentence(rollback.message)}"
    advice = advice_for(rollback.reason, rollback.message)
    if rollback.reason is not FailureReason.SMOKE_FAILED:
        advice = f"{advice} It is tried again when serving changes, or serving.run is {record.number}."
    return Finding(rollback.reason, text, advice)
