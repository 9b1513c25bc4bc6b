"""What is wrong with one pod, in the cluster's own words.

Each rule looks at one pod and says what it found, or None. The first rule of the chain that finds something
wins, so the order is from the particular to the general. Nothing here knows about stages of the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from finetune_api.conditions import FailureReason as Reason
from finetune_api.reasons import EXIT_REASONS, REASONS
from finetune_api.reports import parse_summary
from finetune_operator.diagnose.facts import (
    claims,
    container_of,
    current,
    endings,
    is_over,
    member,
    pod_condition,
    status_of,
    terminated,
)
from finetune_operator.finding import Finding
from finetune_operator.plan import Manifest
from finetune_operator.times import parse_time

# The kubelet mounts volumes within seconds; after a minute something that it needs is not there.
MOUNT_SECONDS = 60.0
# A pod has ended when its grace period is over, and its node says so within seconds.
ENDING_SECONDS = 60.0
IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
                 "RegistryUnavailable"}  # fmt: skip
KILLED = 128 + 9


def first_finding(pod: Manifest, now: datetime) -> Finding | None:
    """The chain."""
    for rule in RULES:
        finding = rule(pod, now)
        if finding is not None:
            return finding
    return None


def _evicted(pod: Manifest, now: datetime) -> Finding | None:
    status = status_of(pod)
    if status.get("reason") == "Evicted":
        return Finding(Reason.EVICTED, f"The pod was evicted: {status.get('message') or 'no reason was given'}")
    return None


def _own_words(pod: Manifest, now: datetime) -> Finding | None:
    """The stage said itself why it ended."""
    for ended in endings(pod):
        summary = parse_summary(ended.get("message"))
        if summary is not None and summary.failure is not None:
            failure = summary.failure
            return Finding(failure.reason, failure.message, failure.advice)
    return None


def _memory(pod: Manifest, now: datetime) -> Finding | None:
    for ended in endings(pod):
        if ended.get("reason") == "OOMKilled":
            return Finding(Reason.OUT_OF_MEMORY, "The container passed its memory limit and was killed (OOMKilled).")
    return None


def _lost_node(pod: Manifest, now: datetime) -> Finding | None:
    """The kubelet called the container ready, and the pod is not: so says the node controller alone, of a node that
    does not answer. Or the kubelet was to end the pod, and has not confirmed it."""
    name, node = pod["metadata"]["name"], (pod.get("spec") or {}).get("nodeName")
    if is_over(pod) or not node:
        return None
    silent = pod_condition(pod, "Ready", "False") if container_of(pod).get("ready") else None
    if silent is not None:
        text = f"The node {node} of the pod {name} does not answer since {silent.get('lastTransitionTime')}."
    elif (_ending_for(pod, now) or 0.0) >= ENDING_SECONDS:
        end = pod["metadata"]["deletionTimestamp"]
        text = f"The pod {name} should have ended at {end}, and its node {node} does not confirm it."
    else:
        return None
    return Finding(Reason.NODE_LOST, text, REASONS[Reason.NODE_LOST].advice.replace(" NODE ", f" {node} "))


def _ending_for(pod: Manifest, now: datetime) -> float | None:
    """Seconds since the pod's grace period was over, negative before; None: nobody deleted it."""
    end = pod["metadata"].get("deletionTimestamp")
    return None if end is None else (now - parse_time(end, now)).total_seconds()


def _disrupted(pod: Manifest, now: datetime) -> Finding | None:
    condition = pod_condition(pod, "DisruptionTarget", "True")
    if condition is not None:
        return Finding(Reason.INTERRUPTED, f"The pod is ended by the cluster: {_words(condition)}")
    if pod["metadata"].get("deletionTimestamp"):
        return Finding(Reason.INTERRUPTED, "The pod was deleted; another one takes its place.")
    return None


def _exit_code(pod: Manifest, now: datetime) -> Finding | None:
    for ended in endings(pod):
        code = ended.get("exitCode")
        if code in EXIT_REASONS:
            return Finding(EXIT_REASONS[code], f"The container ended with exit code {code}.{_tail(ended)}")
        if code == KILLED:
            text = "The container was killed (exit code 137), which is mostly a lack of memory on the node."
            return Finding(Reason.OUT_OF_MEMORY, text)
        if code:
            text = f"The container ended with exit code {code} ({ended.get('reason') or 'Error'}).{_tail(ended)}"
            return Finding(_fault(str(ended.get("message"))), text)
    return None


def _waiting(pod: Manifest, now: datetime) -> Finding | None:
    """The kubelet says why it cannot start the container."""
    waiting = (container_of(pod).get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason"), str(waiting.get("message") or "")
    if reason in IMAGE_REASONS:
        return Finding(Reason.IMAGE_PULL, f"{reason}: {message or 'the image cannot be pulled'}")
    if reason == "CreateContainerConfigError":
        return Finding(Reason.CONFIG_MISSING, f"{reason}: {message}")
    if reason in ("CreateContainerError", "RunContainerError", "CrashLoopBackOff"):
        return Finding(Reason.SYSTEM_FAULT, f"{reason}: {message}")
    return None


def _unscheduled(pod: Manifest, now: datetime) -> Finding | None:
    condition = pod_condition(pod, "PodScheduled", "False")
    if condition is None or condition.get("reason") not in ("Unschedulable", "SchedulerError"):
        return None
    message = str(condition.get("message") or "")
    storage = "persistentvolumeclaim" in message.lower() or "persistent volume" in message.lower()
    storage = storage or "volume node affinity conflict" in message
    if not storage:
        return Finding(Reason.UNSCHEDULABLE, message)
    # The scheduler does not always say which claim it means.
    unnamed = [name for name in claims(pod) if name not in message]
    return Finding(Reason.STORAGE_UNBOUND, message + (f" (claims of the pod: {', '.join(unnamed)})" if unnamed else ""))


def _unmounted(pod: Manifest, now: datetime) -> Finding | None:
    """Volumes are mounted before the sandbox is made; without a sandbox after a minute, one of them is missing."""
    if terminated(pod) is not None or status_of(pod).get("phase") != "Pending":
        return None
    scheduled = pod_condition(pod, "PodScheduled", "True")
    no_sandbox = pod_condition(pod, "PodReadyToStartContainers", "False")
    if scheduled is None or no_sandbox is None or _age(scheduled, now) < MOUNT_SECONDS:
        return None
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    # The run's own ConfigMap is made before its Jobs; one that the user named may not be there.
    sources = [v["configMap"]["name"] for v in volumes if v.get("configMap") and v.get("name") != "config"]
    text = f"The node cannot mount the pod's volumes. PersistentVolumeClaims: {', '.join(claims(pod))}."
    if sources:
        return Finding(Reason.CONFIG_MISSING, f"{text} ConfigMaps: {', '.join(sources)}.")
    advice = (
        "Look at the pod's events; a ReadWriteOnce claim that a server holds on one node cannot be used on another."
    )
    if member(pod):
        advice = (
            "With compute.nodes above 1 output.claimName must be a claim that several nodes can write (ReadWriteMany), "
            "or compute.nodeSelector must keep all pods on one node; the pod's events have more."
        )
    return Finding(Reason.STORAGE_UNBOUND, text, advice)


def look_again_after(pods: Sequence[Manifest], now: datetime) -> float | None:
    """Seconds until `_unmounted` can judge a pod that waits for its volumes, or `_lost_node` one that is being ended.
    None: nothing to wait for."""
    times = (check(pod, now) for pod in current(pods) for check in (_mount_check_after, _end_check_after))
    return min((left for left in times if left is not None), default=None)


def lost_node(pods: Sequence[Manifest], now: datetime) -> Finding | None:
    """That one of the pods is on a node that does not answer."""
    return next((found for pod in current(pods) if (found := _lost_node(pod, now))), None)


def _end_check_after(pod: Manifest, now: datetime) -> float | None:
    over = None if is_over(pod) else _ending_for(pod, now)
    return ENDING_SECONDS - over + 1 if over is not None and over < ENDING_SECONDS else None


def _mount_check_after(pod: Manifest, now: datetime) -> float | None:
    if is_over(pod) or pod_condition(pod, "PodReadyToStartContainers", "False") is None:
        return None
    scheduled = pod_condition(pod, "PodScheduled", "True")
    left = MOUNT_SECONDS - _age(scheduled, now) if scheduled else 0.0
    return left + 1 if left > 0 else None


RULES: tuple[Callable[[Manifest, datetime], Finding | None], ...] = (
    _evicted,  # before exit codes: the container of an evicted pod was killed, too
    _own_words,
    _memory,
    _lost_node,  # before what the cluster does about it, which it cannot bring to an end
    _disrupted,
    _exit_code,
    _waiting,
    _unscheduled,
    _unmounted,
)


def _words(condition: Mapping[str, Any]) -> str:
    return " ".join(str(condition[key]) for key in ("reason", "message") if condition.get(key))


def _tail(ended: Mapping[str, Any]) -> str:
    """The end of the log, where the cause stands."""
    message = str(ended.get("message") or "").strip()
    return f" It last said: {message[-600:]}" if message and parse_summary(message) is None else ""


def _fault(message: str) -> Reason:
    return Reason.STORAGE_FULL if "No space left on device" in message else Reason.SYSTEM_FAULT


def _age(condition: Mapping[str, Any], now: datetime) -> float:
    return (now - parse_time(condition.get("lastTransitionTime"), now)).total_seconds()
