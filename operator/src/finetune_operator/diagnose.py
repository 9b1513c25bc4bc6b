"""From the facts of Jobs and pods to (reason, message): what is wrong, in the cluster's own words.

Each rule looks at one pod and says what it found, or None. The first rule of the chain that finds something
wins, so the order is from the particular to the general. Nothing here knows about stages of the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from finetune_api.conditions import ExitCode, Stage
from finetune_api.conditions import FailureReason as Reason
from finetune_api.reasons import EXIT_REASONS, FINAL_CODES
from finetune_api.reports import Summary, parse_summary
from finetune_api.status import Failure
from finetune_operator.admission import refusal_finding
from finetune_operator.advice import advice_for
from finetune_operator.finding import Finding as Finding
from finetune_operator.names import CONTAINER
from finetune_operator.plan import Manifest, PodRefusal
from finetune_operator.times import parse_time

MESSAGE_LIMIT = 1024  # characters of a message that come from a cluster; enough for a scheduler with 20 complaints
ADVICE_LIMIT = 1024  # as status.py has it
# The kubelet mounts volumes within seconds; after a minute something that it needs is not there.
MOUNT_SECONDS = 60.0

IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
                 "RegistryUnavailable"}  # fmt: skip
KILLED = 128 + 9


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
    """What keeps the newest pod from running, while it lasts. None: all is well, or it only
    begins, or it is about to end: a final exit code becomes the Job's failure in a moment, and is said once."""
    pod = newest(pods)
    if pod is None or (terminated(pod) or {}).get("exitCode") in FINAL_CODES:
        return None
    return first_finding(pod, now)


def refused_pod(refusal: PodRefusal | None, pods: Sequence[Manifest], now: datetime) -> Finding | None:
    """Why a Job has no pod, or its failed one no successor. A pod that lives, or was made since, outdates it."""
    if refusal is None or any(not is_over(pod) for pod in pods):
        return None
    last = newest(pods)
    if last is not None:
        made = parse_time(last["metadata"].get("creationTimestamp"), now)
        if parse_time(refusal.time, now) <= made:
            return None
    return refusal_finding(refusal.message)


def job_failure(job: Manifest, pods: Sequence[Manifest], now: datetime) -> Finding:
    """Why a Job ended: its last failed pod knows the cause, the Job's condition the rule that ended it."""
    condition = job_condition(job, "Failed") or job_condition(job, "FailureTarget") or {}
    message = str(condition.get("message") or "The Job failed.")
    if condition.get("reason") == "DeadlineExceeded":
        return Finding(Reason.DEADLINE_EXCEEDED, message)
    pod = newest([pod for pod in pods if is_over(pod)])
    cause = first_finding(pod, now) if pod else None
    if cause is None:
        return _from_condition(message)
    if condition.get("reason") == "BackoffLimitExceeded":
        return Finding(cause.reason, f"{cause.message} It was tried {_failed(job)} times.", cause.advice)
    return cause


def deployment_trouble(deployment: Manifest, pods: Sequence[Manifest], now: datetime) -> Finding | None:
    """What keeps new servers from being ready."""
    for pod in pods:
        finding = None if is_ready(pod) else first_finding(pod, now)
        if finding and finding.reason is not Reason.INTERRUPTED:
            known = finding.reason is not Reason.SYSTEM_FAULT
            return finding if known else Finding(Reason.NOT_READY, finding.message, finding.advice)
    status = deployment.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return refusal_finding(str(condition.get("message")))
        if condition.get("reason") == "ProgressDeadlineExceeded":
            return Finding(Reason.NOT_READY, str(condition.get("message")))
    return None


def newest(pods: Iterable[Manifest]) -> Manifest | None:
    """The pod that was created last."""
    return max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp") or ""), default=None)


def summary_of(pods: Sequence[Manifest]) -> Summary | None:
    """The summary that a successful pod left, the newest first."""
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp") or ""), reverse=True):
        ended = terminated(pod)
        summary = parse_summary(ended.get("message")) if ended and ended.get("exitCode") == ExitCode.DONE else None
        if summary is not None and summary.ok:
            return summary
    return None


def last_summary(pods: Sequence[Manifest]) -> Summary | None:
    """What the newest pod that ended says of itself, good or bad."""
    pod = newest([pod for pod in pods if is_over(pod)])
    ended = terminated(pod) if pod else None
    return parse_summary(ended.get("message")) if ended else None


def job_condition(job: Manifest, kind: str) -> Mapping[str, Any] | None:
    """The Job's condition of this type, if it is True."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == "True":
            return dict(condition)
    return None


def is_over(pod: Manifest) -> bool:
    """Whether the pod has ended, one way or the other."""
    return _status(pod).get("phase") in ("Succeeded", "Failed") or terminated(pod) is not None


def has_failed(pod: Manifest) -> bool:
    """Whether the pod has ended without success."""
    ended = terminated(pod)
    return _status(pod).get("phase") == "Failed" or (ended is not None and ended.get("exitCode") != ExitCode.DONE)


def is_ready(pod: Manifest) -> bool:
    """Whether the pod answers its readiness probe."""
    return _pod_condition(pod, "Ready", "True") is not None


def ever_ran(pod: Manifest) -> bool:
    """Whether the pod's container has been started at least once."""
    container = _container(pod)
    states = [container.get(part) or {} for part in ("state", "lastState")]
    return any(state.get(kind) is not None for state in states for kind in ("running", "terminated"))


def terminated(pod: Manifest) -> Mapping[str, Any] | None:
    """How the container ended, if it did and was not started again."""
    return (_container(pod).get("state") or {}).get("terminated")


def first_finding(pod: Manifest, now: datetime) -> Finding | None:
    """The chain."""
    for rule in RULES:
        finding = rule(pod, now)
        if finding is not None:
            return finding
    return None


def _evicted(pod: Manifest, now: datetime) -> Finding | None:
    status = _status(pod)
    if status.get("reason") == "Evicted":
        return Finding(Reason.EVICTED, f"The pod was evicted: {status.get('message') or 'no reason was given'}")
    return None


def _own_words(pod: Manifest, now: datetime) -> Finding | None:
    """The stage said itself why it ended."""
    for ended in _endings(pod):
        summary = parse_summary(ended.get("message"))
        if summary is not None and summary.failure is not None:
            failure = summary.failure
            return Finding(failure.reason, failure.message, failure.advice)
    return None


def _memory(pod: Manifest, now: datetime) -> Finding | None:
    for ended in _endings(pod):
        if ended.get("reason") == "OOMKilled":
            return Finding(Reason.OUT_OF_MEMORY, "The container passed its memory limit and was killed (OOMKilled).")
    return None


def _disrupted(pod: Manifest, now: datetime) -> Finding | None:
    condition = _pod_condition(pod, "DisruptionTarget", "True")
    if condition is not None:
        return Finding(Reason.INTERRUPTED, f"The pod is ended by the cluster: {_words(condition)}")
    if pod["metadata"].get("deletionTimestamp"):
        return Finding(Reason.INTERRUPTED, "The pod was deleted; another one takes its place.")
    return None


def _exit_code(pod: Manifest, now: datetime) -> Finding | None:
    for ended in _endings(pod):
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
    waiting = (_container(pod).get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason"), str(waiting.get("message") or "")
    if reason in IMAGE_REASONS:
        return Finding(Reason.IMAGE_PULL, f"{reason}: {message or 'the image cannot be pulled'}")
    if reason == "CreateContainerConfigError":
        return Finding(Reason.CONFIG_MISSING, f"{reason}: {message}")
    if reason in ("CreateContainerError", "RunContainerError", "CrashLoopBackOff"):
        return Finding(Reason.SYSTEM_FAULT, f"{reason}: {message}")
    return None


def _unscheduled(pod: Manifest, now: datetime) -> Finding | None:
    condition = _pod_condition(pod, "PodScheduled", "False")
    if condition is None or condition.get("reason") not in ("Unschedulable", "SchedulerError"):
        return None
    message = str(condition.get("message") or "")
    storage = "persistentvolumeclaim" in message.lower() or "persistent volume" in message.lower()
    storage = storage or "volume node affinity conflict" in message
    if not storage:
        return Finding(Reason.UNSCHEDULABLE, message)
    # The scheduler does not always say which claim it means.
    claims = [name for name in _claims(pod) if name not in message]
    return Finding(Reason.STORAGE_UNBOUND, message + (f" (claims of the pod: {', '.join(claims)})" if claims else ""))


def _claims(pod: Manifest) -> list[str]:
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    return [each["persistentVolumeClaim"]["claimName"] for each in volumes if each.get("persistentVolumeClaim")]


def _unmounted(pod: Manifest, now: datetime) -> Finding | None:
    """Volumes are mounted before the sandbox is made; without a sandbox after a minute, one of them is missing."""
    if terminated(pod) is not None or _status(pod).get("phase") != "Pending":
        return None
    scheduled = _pod_condition(pod, "PodScheduled", "True")
    no_sandbox = _pod_condition(pod, "PodReadyToStartContainers", "False")
    if scheduled is None or no_sandbox is None or _age(scheduled, now) < MOUNT_SECONDS:
        return None
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    # The run's own ConfigMap is made before its Jobs; one that the user named may not be there.
    sources = [v["configMap"]["name"] for v in volumes if v.get("configMap") and v.get("name") != "config"]
    text = f"The node cannot mount the pod's volumes. PersistentVolumeClaims: {', '.join(_claims(pod))}."
    if sources:
        return Finding(Reason.CONFIG_MISSING, f"{text} ConfigMaps: {', '.join(sources)}.")
    advice = (
        "Look at the pod's events; a ReadWriteOnce claim that a server holds on one node cannot be used on another."
    )
    return Finding(Reason.STORAGE_UNBOUND, text, advice)


def mount_check_after(pods: Sequence[Manifest], now: datetime) -> float | None:
    """Seconds until `_unmounted` can judge a pod that waits for its volumes. None: nothing to wait for."""
    pod = newest(pods)
    if pod is None or is_over(pod) or _pod_condition(pod, "PodReadyToStartContainers", "False") is None:
        return None
    scheduled = _pod_condition(pod, "PodScheduled", "True")
    left = MOUNT_SECONDS - _age(scheduled, now) if scheduled else 0.0
    return left + 1 if left > 0 else None


RULES: tuple[Callable[[Manifest, datetime], Finding | None], ...] = (
    _evicted,  # before exit codes: the container of an evicted pod was killed, too
    _own_words,
    _memory,
    _disrupted,
    _exit_code,
    _waiting,
    _unscheduled,
    _unmounted,
)


def _status(pod: Manifest) -> Mapping[str, Any]:
    return pod.get("status") or {}


def _container(pod: Manifest) -> Mapping[str, Any]:
    states = _status(pod).get("containerStatuses") or ()
    return next((state for state in states if state.get("name", CONTAINER) == CONTAINER), {})


def _endings(pod: Manifest) -> list[Mapping[str, Any]]:
    """How the container ended, now or the last time, which counts until the new one is ready: a server that falls
    over again and again is in trouble all the time, not only between two starts."""
    container = _container(pod)
    state = container.get("state") or {}
    last = (container.get("lastState") or {}).get("terminated")
    endings = [state.get("terminated"), None if is_ready(pod) else last]
    return [ended for ended in endings if ended]


def _pod_condition(pod: Manifest, kind: str, status: str) -> Mapping[str, Any] | None:
    for condition in _status(pod).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            return dict(condition)
    return None


def _words(condition: Mapping[str, Any]) -> str:
    return " ".join(str(condition[key]) for key in ("reason", "message") if condition.get(key))


def _tail(ended: Mapping[str, Any]) -> str:
    """The end of the log, where the cause stands."""
    message = str(ended.get("message") or "").strip()
    return f" It last said: {message[-600:]}" if message and parse_summary(message) is None else ""


def _fault(message: str) -> Reason:
    return Reason.STORAGE_FULL if "No space left on device" in message else Reason.SYSTEM_FAULT


def _from_condition(message: str) -> Finding:
    """The pods are gone. A pod failure policy still names the exit code in the Job's condition."""
    for code, reason in EXIT_REASONS.items():
        if f"exit code {code} " in f"{message} ":
            return Finding(reason, message)
    return Finding(Reason.SYSTEM_FAULT, message)


def _failed(job: Manifest) -> int:
    return int((job.get("status") or {}).get("failed") or 0)


def _age(condition: Mapping[str, Any], now: datetime) -> float:
    return (now - parse_time(condition.get("lastTransitionTime"), now)).total_seconds()
