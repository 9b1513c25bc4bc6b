"""From all pods of a Job or Deployment to the one thing that the status says, and how it says it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from math import ceil

from finetune_api.conditions import FailureReason as Reason
from finetune_api.conditions import Stage
from finetune_api.reasons import EXIT_REASONS, FINAL_CODES, REASONS
from finetune_api.status import Failure
from finetune_operator.admission import refusal_finding
from finetune_operator.advice import advice_for
from finetune_operator.conditions import sentence
from finetune_operator.diagnose.chain import first_finding
from finetune_operator.diagnose.facts import (
    current,
    has_failed,
    is_over,
    is_ready,
    job_condition,
    member,
    newest,
    terminated,
)
from finetune_operator.finding import Finding
from finetune_operator.names import LABEL_STAGE, label
from finetune_operator.plan import Manifest, PodRefusal
from finetune_operator.times import parse_time

MESSAGE_LIMIT = 1024  # characters of a message that come from a cluster; enough for a scheduler with 20 complaints
ADVICE_LIMIT = 1024  # as status.py has it
# How a Job ends that has no retry left; the others are those of a gang, which is counted by member.
GAVE_UP = frozenset({"BackoffLimitExceeded", "MaxFailedIndexesExceeded", "FailedIndexes"})
# What is put right outside of the job, and the stages with which a run ends: a look or an export is tried again later.
OUTSIDE = frozenset({Reason.SOURCE_UNAVAILABLE, Reason.SYSTEM_FAULT})
ENDING = frozenset({Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE})
# What the fall of one pod does to the others of its gang, and what is left when nothing else is known.
CONSEQUENCES = frozenset({Reason.SYSTEM_FAULT, Reason.INTERRUPTED})


def to_failure(finding: Finding, stage: Stage, now: str, *, waiting: bool, previous: Failure | None) -> Failure:
    """The status entry. `since` stays while the same thing is wrong in the same stage."""
    same = previous is not None and (previous.reason, previous.stage) == (finding.reason, stage)
    return Failure(
        reason=finding.reason,
        stage=stage,
        message=_steady(finding, previous if same else None)[:MESSAGE_LIMIT],
        advice=(finding.advice or advice_for(finding.reason, finding.message))[:ADVICE_LIMIT],
        waiting=waiting,
        since=previous.since if same and previous else now,
    )


def _steady(finding: Finding, previous: Failure | None) -> str:
    """The kubelet says in turn why an image cannot be pulled and that it waits; the cause is what is kept."""
    waits = "ImagePullBackOff"
    if previous is not None and finding.message.startswith(waits) and not previous.message.startswith(waits):
        return previous.message
    return finding.message


def pod_trouble(pods: Sequence[Manifest], now: datetime) -> Finding | None:
    """What keeps the newest pod, or one of the newest gang, from running, while it lasts. None: all is well, or it only
    begins, or it is about to end: a final exit code becomes the Job's failure in a moment, and is said once."""
    members = current(pods)
    if any((terminated(pod) or {}).get("exitCode") in FINAL_CODES for pod in members):
        return None
    return worst(members, now)


def worst(pods: Sequence[Manifest], now: datetime) -> Finding | None:
    """What is wrong with these pods: a cause before its consequences, what ends before what waits, else the first."""
    findings = [finding for pod in pods if (finding := first_finding(pod, now))]
    return min(findings, key=_rank, default=None)


def _rank(finding: Finding) -> tuple[bool, bool]:
    return finding.reason in CONSEQUENCES, REASONS[finding.reason].waits


def refused_pod(refusal: PodRefusal | None, pods: Sequence[Manifest], now: datetime) -> Finding | None:
    """Why a Job has no pod, or its failed one no successor. A pod that lives, or was made since, outdates it; but a
    member of a gang lives while another one is refused."""
    if refusal is None or any(not is_over(pod) and not member(pod) for pod in pods):
        return None
    last = newest(pods)
    if last is not None:
        made = parse_time(last["metadata"].get("creationTimestamp"), now)
        if parse_time(refusal.time, now) <= made:
            return None
    return refusal_finding(refusal.message)


def is_explained(job: Manifest, pods: Sequence[Manifest]) -> bool:
    """Whether the pods are known by whose ends the Job failed: all that are known have ended, and there are as many as
    failed, or the one by which the Job failed at once."""
    if not pods or not all(is_over(pod) for pod in current(pods)):
        return False
    condition = job_condition(job, "Failed") or job_condition(job, "FailureTarget") or {}
    if condition.get("reason") == "PodFailurePolicy":
        return any((terminated(pod) or {}).get("exitCode") in FINAL_CODES for pod in pods)
    return sum(has_failed(pod) for pod in pods) >= _failed(job)


def job_failure(job: Manifest, pods: Sequence[Manifest], now: datetime) -> Finding:
    """Why a Job ended: its last failed pod knows the cause, the Job's condition the rule that ended it."""
    condition = job_condition(job, "Failed") or job_condition(job, "FailureTarget") or {}
    message = str(condition.get("message") or "The Job failed.")
    if condition.get("reason") == "DeadlineExceeded":
        return Finding(Reason.DEADLINE_EXCEEDED, message)
    cause = worst(current(pod for pod in pods if is_over(pod)), now)
    if cause is None:
        return _from_condition(message)
    if condition.get("reason") in GAVE_UP:
        width = len({member(pod) for pod in pods})
        text = f"{sentence(cause.message)} It was tried {ceil(_failed(job) / width)} times."
        return Finding(cause.reason, text, _how_to_go_on(cause, job))
    return cause


def _how_to_go_on(cause: Finding, job: Manifest) -> str:
    """The advice, and how to begin anew where the run has ended and nothing in the job has to change."""
    if not cause.advice or cause.reason not in OUTSIDE or label(job, LABEL_STAGE) not in ENDING:
        return cause.advice
    return f"{cause.advice.rstrip('.')}; then set a new spec.rerunToken to try again"


def deployment_trouble(deployment: Manifest, pods: Sequence[Manifest], now: datetime) -> Finding | None:
    """What keeps new servers from being ready."""
    # A server that is ended by the cluster is replaced; that is no trouble of the others.
    staying = [pod for pod in pods if not is_ready(pod) and not _is_replaced(pod, now)]
    finding = worst(staying, now)
    if finding is not None:
        known = finding.reason is not Reason.SYSTEM_FAULT
        return finding if known else Finding(Reason.NOT_READY, finding.message, finding.advice)
    status = deployment.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return refusal_finding(str(condition.get("message")))
        if condition.get("reason") == "ProgressDeadlineExceeded":
            return Finding(Reason.NOT_READY, str(condition.get("message")))
    return None


def _is_replaced(pod: Manifest, now: datetime) -> bool:
    finding = first_finding(pod, now)
    interrupted = finding is not None and finding.reason is Reason.INTERRUPTED
    return interrupted or "deletionTimestamp" in pod["metadata"]  # also by a lost node, which never confirms its end


def _from_condition(message: str) -> Finding:
    """The pods are gone. A pod failure policy still names the exit code in the Job's condition."""
    for code, reason in EXIT_REASONS.items():
        if f"exit code {code} " in f"{message} ":
            return Finding(reason, message)
    return Finding(Reason.SYSTEM_FAULT, message)


def _failed(job: Manifest) -> int:
    return int((job.get("status") or {}).get("failed") or 0)
