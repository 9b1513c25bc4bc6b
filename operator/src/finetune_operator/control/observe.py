"""What is known of a job's children, out of the cache."""

from __future__ import annotations

from finetune_api.conditions import Stage
from finetune_operator import names
from finetune_operator.control.cache import Cache
from finetune_operator.control.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    JOB,
    POD_REFUSAL,
    SERVICE,
    WORKLOAD,
    Resource,
)
from finetune_operator.plan import ApplyFailure, Manifest, Observed, PodRefusal, ProgressReport


def observe(
    cache: Cache, job_uid: str, progress: ProgressReport | None = None, apply_failure: ApplyFailure | None = None
) -> Observed:
    """The children that the job with this uid controls, their pods, and pods that a Job left which is gone."""
    children = list(cache.children(job_uid))

    def of(resource: Resource) -> dict[str, Manifest]:
        return {child["metadata"]["name"]: child for child in children if child["kind"] == resource.kind}

    jobs = of(JOB)
    pods, former = _pods(cache, job_uid, {job["metadata"]["uid"] for job in jobs.values()})
    return Observed(
        jobs=jobs,
        pods=pods,
        config_maps=of(CONFIG_MAP),
        deployments=of(DEPLOYMENT),
        services=of(SERVICE),
        progress=progress,
        apply_failure=apply_failure,
        former_pods=former,
        refusals={name: found for name, job in jobs.items() if (found := _refusal(cache, job))},
        workloads={name: made for name, job in jobs.items() if (made := _workload(cache, job))},
    )


def _pods(cache: Cache, job_uid: str, own: set[str]) -> tuple[list[Manifest], list[Manifest]]:
    """The pods with the job's label, by name: those of its Jobs and servers, and those of Jobs that are gone."""
    name = cache.name_of_job(job_uid)
    found = (
        sorted(cache.pods(name[0], names.cut(name[1])), key=lambda pod: str(pod["metadata"]["name"])) if name else []
    )
    pods: list[Manifest] = []
    former: list[Manifest] = []
    for pod in found:
        owners = {each["uid"]: each["kind"] for each in pod["metadata"].get("ownerReferences") or ()}
        jobs = {uid for uid, kind in owners.items() if kind == JOB.kind}
        if jobs <= own and owners:
            pods.append(pod)
        elif jobs or names.label(pod, names.LABEL_STAGE) != Stage.SERVE.value:
            # Without an owner: its Job was deleted with --cascade=orphan. It may still write to the run, and what it
            # says is not what a Job of ours has come to. A server without one is nobody's.
            former.append(pod)
    return pods, former


def _refusal(cache: Cache, job: Manifest) -> PodRefusal | None:
    """What the Job controller was answered last."""
    told = [each for each in cache.children(job["metadata"]["uid"]) if each["kind"] == POD_REFUSAL.kind]
    newest = max(told, key=_time, default=None)
    return PodRefusal(str(newest.get("message") or ""), _time(newest)) if newest else None


def _workload(cache: Cache, job: Manifest) -> Manifest | None:
    """What Kueue made of the Job."""
    return next((each for each in cache.children(job["metadata"]["uid"]) if each["kind"] == WORKLOAD.kind), None)


def _time(event: Manifest) -> str:
    """When the Event was told last: by the older of Kubernetes' two ways to write it, or by the newer."""
    series, metadata = event.get("series") or {}, event["metadata"]
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    return str(next((time for time in times if time), metadata.get("creationTimestamp") or ""))
