"""What the pods of one training need to find each other: an index each, a name of the first one, a port.

Kubernetes gives each pod of an Indexed Job the host name JOB-INDEX, and a headless Service makes it known. When a pod
is lost, the others fail, since they wait for it, and the Job controller makes all of them anew: no operator is needed.
"""

from __future__ import annotations

from typing import Any

from finetune_api.conditions import Stage
from finetune_api.job import FineTuneJob
from finetune_operator import names
from finetune_operator.builders.metadata import metadata
from finetune_operator.builders.shape import SHAPES
from finetune_operator.plan import Manifest

PORT = 29500  # PyTorch's own; a pod has its own address, so nothing else can have it
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


def members(job: FineTuneJob, stage: Stage) -> int:
    """Pods of the stage that work together."""
    return job.spec.compute.nodes if SHAPES[stage].spreads else 1


def gang_job(job: FineTuneJob, stage: Stage, backoff_limit: int) -> dict[str, Any]:
    """Of a Job's spec, what depends on the number of its pods."""
    count = members(job, stage)
    spec: dict[str, Any] = {"completions": count, "parallelism": count}
    if count == 1:
        return {**spec, "backoffLimit": backoff_limit}
    # One that is lost takes all others with it. Counted by pod that is one fall; counted by Job it would be as many as
    # there are pods, each of which doubles the pause before all are made anew.
    return {**spec, "completionMode": "Indexed", "backoffLimitPerIndex": backoff_limit, "maxFailedIndexes": 0}


def gang_pod(job: FineTuneJob, stage: Stage, labels: dict[str, str]) -> dict[str, Any]:
    """Of a pod's spec, what depends on the number of its peers. `labels` select them."""
    if members(job, stage) == 1:
        return {}
    spread = job.spec.compute.topology_spread
    constraint = {
        "maxSkew": 1,
        "topologyKey": spread.topology_key,
        "whenUnsatisfiable": spread.when_unsatisfiable.value,
        "labelSelector": {"matchLabels": labels},
    }
    return {"subdomain": names.peers_name(job.metadata.name), "topologySpreadConstraints": [constraint]}


def gang_labels(job: FineTuneJob, stage: Stage) -> dict[str, str]:
    """The label by which NetworkPolicies let peers reach each other; none of a pod that has none."""
    return {names.LABEL_GANG: "true"} if members(job, stage) > 1 else {}


def gang_env(job: FineTuneJob, stage: Stage, job_name: str) -> list[dict[str, Any]]:
    """The trainer's contract (finetune_trainer/distribution)."""
    count = members(job, stage)
    if count == 1:
        return []
    host = f"{job_name}-0.{names.peers_name(job.metadata.name)}.{job.metadata.namespace}.svc"
    return [
        {"name": "FINETUNE_NODES", "value": str(count)},
        {
            "name": "FINETUNE_NODE_RANK",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX_LABEL}']"}},
        },
        {"name": "FINETUNE_RENDEZVOUS", "value": f"{host}:{PORT}"},
    ]


def peers_service(job: FineTuneJob) -> Manifest:
    """Headless: a name for each pod, and no address of its own."""
    meta = job.metadata
    labels = {names.MANAGED_BY: "finetune-operator", names.LABEL_JOB: names.cut(meta.name)}
    labels[names.LABEL_STAGE] = Stage.TRAIN.value
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, names.peers_name(meta.name), labels),
        "spec": {
            "clusterIP": "None",
            "selector": {names.LABEL_JOB: names.cut(meta.name), names.LABEL_STAGE: Stage.TRAIN.value},
            "publishNotReadyAddresses": True,  # they must find each other to become anything
            "ports": [{"name": "rendezvous", "port": PORT, "targetPort": PORT}],
        },
    }
