"""What the Job controller and the kubelet would write: pods and Job status, as plain values.

Pure. The rules for retries are read from the Job itself, so that a laptop and a cluster cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_api.conditions import ExitCode
from finetune_api.reports import parse_summary
from finetune_operator import names
from finetune_operator.plan import Manifest

ANNOTATION_PID = "finetune-operator.io/pid"
MESSAGE_BYTES = 4096  # Kubernetes' limit for a termination message


def created(manifest: Manifest, uid: str, now: str) -> Manifest:
    """A new object, as the API server would return it."""
    return {**manifest, "metadata": {**manifest["metadata"], "uid": uid, "creationTimestamp": now, "generation": 1}}


def new_pod(owner: Manifest, attempt: int, uid: str, now: str) -> Manifest:
    """A pod of a Job or Deployment, not yet started."""
    template, meta = owner["spec"]["template"], owner["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{meta['name']}-{attempt}",
            "namespace": meta["namespace"],
            "uid": uid,
            "creationTimestamp": now,
            "labels": {**template["metadata"]["labels"], names.LABEL_ATTEMPT: str(attempt)},
            "annotations": {},
            "ownerReferences": [{"kind": owner["kind"], "name": meta["name"], "uid": meta["uid"], "controller": True}],
        },
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    }


def running(pod: Manifest, pid: int, now: str, *, ready: bool = False) -> Manifest:
    """The pod with its process started."""
    state = {"name": names.CONTAINER, "ready": ready, "restartCount": 0, "state": {"running": {"startedAt": now}}}
    meta = {**pod["metadata"], "annotations": {ANNOTATION_PID: str(pid)}}
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        **pod,
        "metadata": meta,
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [state]},
    }


def ended(pod: Manifest, exit_code: int, message: str, now: str) -> Manifest:
    """The pod after its process ended. A negative code is a signal, as Python has it."""
    code = 128 - exit_code if exit_code < 0 else exit_code
    running = [state["state"].get("running") or {} for state in pod["status"].get("containerStatuses") or ()]
    started = next((state["startedAt"] for state in running if state.get("startedAt")), now)
    terminated = {
        "exitCode": code,
        "reason": "Completed" if code == 0 else "Error",
        "message": message.encode()[-MESSAGE_BYTES:].decode(errors="ignore"),
        "startedAt": started,
        "finishedAt": now,
    }
    state = {"name": names.CONTAINER, "ready": False, "restartCount": 0, "state": {"terminated": terminated}}
    status = {"phase": "Succeeded" if code == 0 else "Failed", "containerStatuses": [state]}
    meta = {**pod["metadata"], "annotations": {}}
    return {**pod, "metadata": meta, "status": status}


def exit_code_of(pod: Manifest) -> int | None:
    """The exit code of an ended pod, or None while it runs."""
    for container in pod["status"].get("containerStatuses") or ():
        if container["state"].get("terminated"):
            return int(container["state"]["terminated"]["exitCode"])
    return None


def presumed_exit_code(message: str) -> int:
    """The exit code of a stage that ended while nobody looked, from its last words. Without any it was cut short."""
    summary = parse_summary(message)
    if summary is None:
        return ExitCode.INTERRUPTED
    return ExitCode.DONE if summary.ok else 1


def action(rules: Sequence[Manifest], exit_code: int) -> str:
    """What podFailurePolicy says to an exit code: FailJob, Ignore or Count."""
    for rule in rules:
        wanted: dict[str, Any] = rule.get("onExitCodes") or {}
        listed = exit_code in (wanted.get("values") or ())
        if wanted and listed == (wanted.get("operator") == "In"):
            return str(rule["action"])
    return "Count"


def is_finished(job: Manifest) -> bool:
    """Whether the Job is Complete or Failed."""
    return any(c["status"] == "True" for c in (job.get("status") or {}).get("conditions") or ())


def with_status(job: Manifest, pods: Sequence[Manifest], now: str) -> Manifest:
    """The Job as its controller would have it after these pods."""
    if is_finished(job):
        return job
    rules = (job["spec"].get("podFailurePolicy") or {}).get("rules") or ()
    codes = [code for code in map(exit_code_of, pods) if code is not None]
    failures = [code for code in codes if code and action(rules, code) != "Ignore"]
    status: Manifest = {"failed": len(failures), "active": len(pods) - len(codes)}
    if ExitCode.DONE in codes:
        return {**job, "status": {**status, "succeeded": 1, "completionTime": now, **_condition("Complete", now)}}
    # A machine's disk is emptied by whoever reads that it is full: there is nobody else to wait for.
    fatal = next((each for each in codes if each == ExitCode.STORAGE_FULL or action(rules, each) == "FailJob"), None)
    if fatal is not None:
        text = f"Container {names.CONTAINER} failed with exit code {fatal} matching FailJob rule"
        return {**job, "status": {**status, **_condition("Failed", now, "PodFailurePolicy", text)}}
    if len(failures) > job["spec"].get("backoffLimit", 6):
        text = "Job has reached the specified backoff limit"
        return {**job, "status": {**status, **_condition("Failed", now, "BackoffLimitExceeded", text)}}
    return {**job, "status": status}


def past_deadline(job: Manifest, now: str) -> Manifest:
    """The Job after activeDeadlineSeconds."""
    text = "Job was active longer than specified deadline"
    return {**job, "status": {**(job.get("status") or {}), **_condition("Failed", now, "DeadlineExceeded", text)}}


def _condition(kind: str, now: str, reason: str = "", message: str = "") -> Manifest:
    condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now}
    return {"conditions": [condition]}


def deployment_status(deployment: Manifest, *, ready: bool) -> Manifest:
    """The Deployment with its one server."""
    count = int(ready)
    status = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": 1,
        "updatedReplicas": 1,
        "readyReplicas": count,
        "availableReplicas": count,
        "unavailableReplicas": 1 - count,
    }
    return {**deployment, "status": status}
