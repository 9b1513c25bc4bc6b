"""Why a stage's Job is held back: what Kueue says in the conditions of its Workload, or that somebody suspended it.

Kueue un-suspends a Job together with the nodes that it chose. Nothing here, and nothing that is written, touches that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.conditions import FailureReason as Reason
from finetune_operator.diagnose.facts import job_condition
from finetune_operator.finding import Finding
from finetune_operator.names import LABEL_QUEUE, label
from finetune_operator.plan import Manifest

# Kueue's words -> what to do. The reasons of its conditions differ from version to version, its sentences do not.
BLOCKED: tuple[tuple[str, str], ...] = (
    (
        "LocalQueue",
        "Correct compute.queueName (kubectl get localqueues lists the namespace's), or ask for such a queue; a stopped "
        "one is started by who runs it.",
    ),
    (
        "ClusterQueue",
        "Ask who runs the queue to make its ClusterQueue or start it again; kubectl describe clusterqueue says what it "
        "lacks.",
    ),
)
NEVER: tuple[str, ...] = ("maximum capacity", "unavailable in ClusterQueue", "doesn't match node affinity")
TOO_LARGE = (
    "The queue's quota can never hold this: ask for less in compute (gpus, nodes, resources), name another queue, or "
    "ask who runs it for more."
)
DEACTIVATED = "Set a new spec.rerunToken, or activate the Workload that the message names again."
NO_WORKLOAD = (
    "If it lasts: Kueue must run, and take Jobs of this namespace; kubectl get workloads shows what it made of them."
)


def held_back(job: Manifest, workload: Manifest | None) -> Finding | None:
    """Why the Job makes no pods; None when it may."""
    queue = label(job, LABEL_QUEUE)
    suspended = job_condition(job, "Suspended")
    if queue is None:
        return _by_somebody(job) if suspended else None
    if suspended is None and "startTime" in (job.get("status") or {}):
        return None
    if workload is None:
        return Finding(Reason.QUEUED, f"It waits in the queue {queue}.", NO_WORKLOAD)
    return _by_queue(queue, workload)


def _by_somebody(job: Manifest) -> Finding:
    name = job["metadata"]["name"]
    text = f"The Job {name} is suspended, and not by this operator."
    advice = (
        "A queue controller that takes every Job of this namespace wants compute.queueName. Otherwise: kubectl patch "
        f'job {name} --type=merge -p \'{{"spec":{{"suspend":false}}}}\'.'
    )
    return Finding(Reason.JOB_SUSPENDED, text, advice)


def _by_queue(queue: str, workload: Manifest) -> Finding:
    name = workload["metadata"]["name"]
    if (workload.get("spec") or {}).get("active") is False:
        return Finding(Reason.QUEUE_UNAVAILABLE, f"Kueue's Workload {name} was deactivated.", DEACTIVATED)
    said = _said(workload, "QuotaReserved", "False") or _said(workload, "Admitted", "False")
    text = str(said.get("message") or f"It waits in the queue {queue}.")
    for mark, advice in BLOCKED:
        if text.startswith(mark):
            return Finding(Reason.QUEUE_UNAVAILABLE, text, advice)
    if any(mark in text for mark in NEVER):
        return Finding(Reason.QUEUE_UNAVAILABLE, text, TOO_LARGE)
    evicted = _said(workload, "Evicted", "True")
    before = f"It had to give way: {evicted.get('message')} " if evicted.get("message") else ""
    return Finding(Reason.QUEUED, f"{before}Queue {queue}: {text}")


def _said(workload: Manifest, kind: str, status: str) -> Mapping[str, Any]:
    for condition in (workload.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            return dict(condition)
    return {}
