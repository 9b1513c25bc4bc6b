"""Jobs that cannot go on, one for each reason of a failure that a whole node can be made to give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api.conditions import FailureReason as Reason
from tests.e2e.manifests import travel_job
from tests.e2e.product import Job

NO_GPU = {"gpus": 1, "gpuResource": "example.com/gpu"}  # no node has it: a training waits for it
NO_NODE = {"nodeSelector": {"example.com/pool": "nowhere"}}  # Prepare waits already, and costs nothing
SMALL = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "96Mi"}}
UNBOUND = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "nowhere"},
    "spec": {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "volumeName": "no-such-volume",
        "resources": {"requests": {"storage": "1Gi"}},
    },
}


@dataclass(frozen=True)
class Bad:
    """A job, what must be said of it, and whether that may right itself; `beside` is applied before it."""

    reason: Reason
    words: str
    spec: dict[str, Any]
    waits: bool = False
    beside: tuple[Job, ...] = ()

    @property
    def name(self) -> str:
        return str(self.reason).lower()

    @property
    def manifests(self) -> tuple[Job, ...]:
        return (*self.beside, travel_job(self.name, **{"serving": {"replicas": 0}, **self.spec}))


def compute(**fields: Any) -> dict[str, Any]:
    return {"compute": {**travel_job("any")["spec"]["compute"], **fields}}


def validated(source: str) -> dict[str, Any]:
    return {"dataset": {"train": {"source": source}, "validation": {"fraction": 0.2}}}


def stranger(kind: str, name: str, **spec: Any) -> Job:
    """A Job of somebody else that does nothing."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "localhost/none"}]}
    body = {"suspend": True, "template": {"spec": pod}, **spec}
    return {"apiVersion": "batch/v1", "kind": kind, "metadata": {"name": name}, "spec": body}


BAD = (
    Bad(Reason.DATASET_INVALID, "line", validated("pvc://sources/travel/broken.jsonl")),
    Bad(Reason.MODEL_INVALID, "travel", {"baseModel": {"source": "pvc://sources/travel"}}),
    Bad(Reason.SOURCE_UNAVAILABLE, "nowhere.jsonl", validated("pvc://sources/nowhere.jsonl")),
    Bad(
        Reason.SPEC_INVALID,
        "evaluation.checks, shape",
        {"evaluation": {"checks": [{"name": "shape", "jsonSchema": '{"type": 7}'}]}},
    ),
    Bad(Reason.LOSS_NOT_FINITE, "loss is nan at step 1", {"baseModel": {"source": "pvc://sources/nan-base"}}),
    Bad(Reason.CUDA_OUT_OF_MEMORY, "Tried to allocate 2.00 GiB", {}),
    Bad(Reason.OUT_OF_MEMORY, "OOMKilled", compute(resources=SMALL), waits=True),
    Bad(Reason.UNSCHEDULABLE, "node affinity/selector", compute(**NO_NODE), waits=True),
    Bad(Reason.PRICE_MISSING, "price", {**compute(**NO_GPU), "budget": {"maxCost": "5"}}, waits=True),
    Bad(Reason.BASE_NOT_PROMOTED, "nobody", {"baseModel": {"fineTuneJob": {"name": "nobody"}}}, waits=True),
    Bad(
        Reason.CONFIG_MISSING,
        'secret "nowhere" not found',
        {"baseModel": {"source": "pvc://sources/tiny-base", "secretRef": {"name": "nowhere"}}},
        waits=True,
    ),
    Bad(Reason.STORAGE_UNBOUND, "nowhere", {"output": {"claimName": "nowhere"}}, waits=True, beside=(UNBOUND,)),
    Bad(
        Reason.NAME_CONFLICT,
        "nameconflict-r1-prepare",
        {},
        waits=True,
        beside=(stranger("Job", "nameconflict-r1-prepare"),),
    ),
)

# In a namespace each, since they concern all pods of it.
QUOTA = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
LIMITS = {
    "apiVersion": "v1",
    "kind": "LimitRange",
    "metadata": {"name": "small"},
    "spec": {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]},
}
NAMESPACES = (
    Bad(Reason.QUOTA_EXCEEDED, "exceeded quota: none", {}, waits=True, beside=(QUOTA,)),
    Bad(Reason.POD_REFUSED, "memory limit of 64Mi", {}, waits=True, beside=(LIMITS,)),
)

# The node has no GPU: what a trainer says when the memory of one does not suffice is said in its place, by its own
# code, from the pod that the operator made. `make gpu` makes it happen.
WORDS = """
import sys; from pathlib import Path; from finetune_trainer.frame import report_failure
error = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB.")
sys.exit(report_failure("Train", error, Path("/dev/termination-log")))
"""


def no_gpu_memory(namespace: str) -> tuple[Job, Job]:
    """An admission policy that lets the Train pod of `cudaoutofmemory` say so."""
    group, name = "admissionregistration.k8s.io/v1", f"{namespace}-no-gpu-memory"
    job, stage = "finetune-operator.io/job", "finetune-operator.io/stage"
    chosen = f"object.metadata.?labels[?'{job}'].orValue('') == 'cudaoutofmemory'"
    chosen += f" && object.metadata.?labels[?'{stage}'].orValue('') == 'Train'"
    path, value = "/spec/containers/0/command", ["python3", "-c", WORDS]
    patch = f'[JSONPatch{{op: "replace", path: "{path}", value: {value!r}}}]'
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    where = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    policy = {
        "matchConstraints": {"namespaceSelector": where, "resourceRules": [pods]},
        "matchConditions": [{"name": "chosen", "expression": chosen}],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
    }
    return (
        {"apiVersion": group, "kind": "MutatingAdmissionPolicy", "metadata": {"name": name}, "spec": policy},
        {
            "apiVersion": group,
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name},
        },
    )
