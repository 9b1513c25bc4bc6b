"""What is known of a job's children, out of the cache."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator.control.cache import Cache
from finetune_operator.control.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    JOB,
    JOB_LABEL,
    SERVICE,
    Resource,
)
from finetune_operator.plan import ApplyFailure, Manifest, Observed, ProgressReport


def observe(
    cache: Cache, job_uid: str, progress: ProgressReport | None = None, apply_failure: ApplyFailure | None = None
) -> Observed:
    """The children that the job with this uid controls, and their pods. Objects of others are left out."""
    children = list(cache.children(job_uid))

    def of(resource: Resource) -> dict[str, Manifest]:
        return {child["metadata"]["name"]: child for child in children if child["kind"] == resource.kind}

    jobs = of(JOB)
    return Observed(
        jobs=jobs,
        pods=sorted(_pods(cache, children, jobs), key=lambda pod: str(pod["metadata"]["name"])),
        config_maps=of(CONFIG_MAP),
        deployments=of(DEPLOYMENT),
        services=of(SERVICE),
        progress=progress,
        apply_failure=apply_failure,
    )


def _pods(cache: Cache, children: list[Manifest], jobs: dict[str, Manifest]) -> Iterator[Manifest]:
    job_uids = {job["metadata"]["uid"] for job in jobs.values()}
    labels = {
        (child["metadata"]["namespace"], label)
        for child in children
        if (label := (child["metadata"].get("labels") or {}).get(JOB_LABEL))
    }
    for namespace, label in labels:
        for pod in cache.pods(namespace, label):
            owners = {each["uid"] for each in pod["metadata"].get("ownerReferences") or () if each["kind"] == "Job"}
            if owners <= job_uids:  # a pod of a deleted job of the same name is not ours
                yield pod
