"""What a Job and its pods say, one question a function. Nothing here judges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_api.conditions import ExitCode
from finetune_api.reasons import FINAL_CODES
from finetune_api.reports import Summary, parse_summary
from finetune_operator.names import CONTAINER, annotation, label
from finetune_operator.plan import Manifest

MEMBER = "batch.kubernetes.io/job-completion-index"  # label and annotation of an Indexed Job's pods


def current(pods: Iterable[Manifest]) -> list[Manifest]:
    """The pods that count: the one that was created last, of a gang that of each member."""
    members: dict[str, Manifest] = {}
    for pod in sorted(pods, key=_created):
        members[member(pod)] = pod
    return [members[name] for name in sorted(members, key=lambda name: (len(name), name))]


def newest(pods: Iterable[Manifest]) -> Manifest | None:
    """The pod that was created last."""
    return max(pods, key=_created, default=None)


def member(pod: Manifest) -> str:
    """Which of a Job's gang the pod is, by its completion index; empty where each pod replaces the one before."""
    return label(pod, MEMBER) or annotation(pod, MEMBER) or ""


def spent(pods: Iterable[Manifest], failed: int = 0) -> int:
    """How many generations of a Job's pods are used up and followed by another, by the pods that failed or are being
    deleted and by the number that the Job counted: members of one gang that fell together are one."""
    gone = Counter(member(pod) for pod in pods if pod["metadata"].get("deletionTimestamp") or _is_followed(pod))
    width = len({member(pod) for pod in pods}) or 1
    return max([math.ceil(failed / width), *gone.values()])


def _is_followed(pod: Manifest) -> bool:
    return has_failed(pod) and (terminated(pod) or {}).get("exitCode") not in FINAL_CODES


def summary_of(pods: Sequence[Manifest]) -> Summary | None:
    """The summary that a successful pod left, the newest first; of a gang that of its first member."""
    for pod in sorted(pods, key=lambda pod: (member(pod) in ("", "0"), _created(pod)), reverse=True):
        ended = terminated(pod)
        summary = parse_summary(ended.get("message")) if ended and ended.get("exitCode") == ExitCode.DONE else None
        if summary is not None and summary.ok:
            return summary
    return None


def last_summary(pods: Sequence[Manifest]) -> Summary | None:
    """What the newest pod that ended says of itself, good or bad; of a gang the first member with words."""
    endings = (terminated(pod) for pod in current(pod for pod in pods if is_over(pod)))
    found = (parse_summary(ended.get("message")) for ended in endings if ended)
    return next((summary for summary in found if summary is not None), None)


def _created(pod: Manifest) -> str:
    return str(pod["metadata"].get("creationTimestamp") or "")


def job_condition(job: Manifest, kind: str, status: str = "True") -> Mapping[str, Any] | None:
    """The Job's condition of this type, if it has this status."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            return dict(condition)
    return None


def is_over(pod: Manifest) -> bool:
    """Whether the pod has ended, one way or the other."""
    return status_of(pod).get("phase") in ("Succeeded", "Failed") or terminated(pod) is not None


def has_failed(pod: Manifest) -> bool:
    """Whether the pod has ended without success."""
    ended = terminated(pod)
    return status_of(pod).get("phase") == "Failed" or (ended is not None and ended.get("exitCode") != ExitCode.DONE)


def is_ready(pod: Manifest) -> bool:
    """Whether the pod answers its readiness probe."""
    return pod_condition(pod, "Ready", "True") is not None


def ever_ran(pod: Manifest) -> bool:
    """Whether the pod's container has been started at least once."""
    container = container_of(pod)
    states = [container.get(part) or {} for part in ("state", "lastState")]
    return any(state.get(kind) is not None for state in states for kind in ("running", "terminated"))


def terminated(pod: Manifest) -> Mapping[str, Any] | None:
    """How the container ended, if it did and was not started again."""
    return (container_of(pod).get("state") or {}).get("terminated")


def endings(pod: Manifest) -> list[Mapping[str, Any]]:
    """How the container ended, now or the last time, which counts until the new one is ready: a server that falls
    over again and again is in trouble all the time, not only between two starts."""
    container = container_of(pod)
    state = container.get("state") or {}
    last = (container.get("lastState") or {}).get("terminated")
    endings = [state.get("terminated"), None if is_ready(pod) else last]
    return [ended for ended in endings if ended]


def claims(pod: Manifest) -> list[str]:
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    return [each["persistentVolumeClaim"]["claimName"] for each in volumes if each.get("persistentVolumeClaim")]


def status_of(pod: Manifest) -> Mapping[str, Any]:
    return pod.get("status") or {}


def container_of(pod: Manifest) -> Mapping[str, Any]:
    states = status_of(pod).get("containerStatuses") or ()
    return next((state for state in states if state.get("name", CONTAINER) == CONTAINER), {})


def pod_condition(pod: Manifest, kind: str, status: str) -> Mapping[str, Any] | None:
    for condition in status_of(pod).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            return dict(condition)
    return None


def is_rolling(deployment: Manifest) -> bool:
    """Whether its servers are being replaced. What was given up, or is held by somebody, is not waited for."""
    status, generation = deployment.get("status") or {}, int(deployment["metadata"].get("generation") or 0)
    reasons = {condition.get("reason") for condition in status.get("conditions") or ()}
    if generation <= 1 or reasons & {"ProgressDeadlineExceeded", "DeploymentPaused"}:
        return False
    unseen = int(status.get("observedGeneration") or 0) < generation
    return unseen or int(status.get("replicas") or 0) > int(status.get("updatedReplicas") or 0)


def charged_for(spec: Mapping[str, Any]) -> Manifest:
    """Of a pod's spec, what its GPUs are known by: extended resources, and the labels by which nodes were selected.
    Empty for a pod that has none."""
    limits = [(each.get("resources") or {}).get("limits") or {} for each in spec.get("containers") or ()]
    found = [{"resources": {"limits": {n: a for n, a in limit.items() if "/" in n}}} for limit in limits]
    if not any(each["resources"]["limits"] for each in found):
        return {}
    return {"containers": found, "nodeSelector": spec.get("nodeSelector") or {}}


def gpus_of(pod: Manifest, resource: str) -> int:
    """GPUs that the pod asks for, by the name of their resource."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    limits = [(each.get("resources") or {}).get("limits") or {} for each in containers]
    return sum(int(amount) for limit in limits for name, amount in limit.items() if name == resource)


def held_since(pod: Manifest) -> str | None:
    """When a node took the pod; its GPUs are nobody else's from then on."""
    scheduled = pod_condition(pod, "PodScheduled", "True") or {}
    states = [state for part in ("state", "lastState") for state in (container_of(pod).get(part) or {}).values()]
    told = [scheduled.get("lastTransitionTime"), status_of(pod).get("startTime")]
    return min((str(time) for time in (*told, *(state.get("startedAt") for state in states)) if time), default=None)


def held_until(pod: Manifest) -> str | None:
    """When the pod ended, or None while it has not. Of one that left no such time: the last that is known of it."""
    if not is_over(pod):
        return None
    states = status_of(pod).get("containerStatuses") or ()
    ended = [((state.get("state") or {}).get("terminated") or {}).get("finishedAt") for state in states]
    times = [str(time) for time in ended if time]
    changes = (each.get("lastTransitionTime") for each in status_of(pod).get("conditions") or ())
    return max(times or [str(time) for time in changes if time], default=held_since(pod))
