"""The kinds of objects that the control plane watches and writes, and where the API server keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api import GROUP, KIND, PLURAL, VERSION
from finetune_operator import names

OURS = f"{names.MANAGED_BY}=finetune-operator"


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind: its group ("" is the core), version, plural name, and by which labels and fields it is watched."""

    kind: str
    group: str
    version: str
    plural: str
    selector: str = ""
    fields: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path; without a namespace that of all namespaces."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        middle = f"/namespaces/{namespace}/{self.plural}" if namespace else f"/{self.plural}"
        return root + middle + "".join(f"/{part}" for part in (name, subresource) if part)


FINE_TUNE_JOB = Resource(KIND, GROUP, VERSION, PLURAL)
JOB = Resource("Job", "batch", "v1", "jobs", OURS)
POD = Resource("Pod", "", "v1", "pods", OURS)
CONFIG_MAP = Resource("ConfigMap", "", "v1", "configmaps", OURS)
DEPLOYMENT = Resource("Deployment", "apps", "v1", "deployments", OURS)
SERVICE = Resource("Service", "", "v1", "services", OURS)
# Why no pod can be made of a Job is told nowhere but in Kubernetes' own Events; the server sends only those.
POD_REFUSAL = Resource("Event", "", "v1", "events", fields="involvedObject.kind=Job,reason=FailedCreate")
# Why a queue holds a Job back. Kueue gives its Workloads no label of ours: those of others are dropped on arrival.
WORKLOAD = Resource("Workload", "kueue.x-k8s.io", "v1beta2", "workloads")
EVENT = Resource("Event", "events.k8s.io", "v1", "events")
LEASE = Resource("Lease", "coordination.k8s.io", "v1", "leases")

WATCHED = (FINE_TUNE_JOB, JOB, POD, CONFIG_MAP, DEPLOYMENT, SERVICE, POD_REFUSAL)
BY_KIND: Mapping[str, Resource] = {each.kind: each for each in (*WATCHED, WORKLOAD, EVENT, LEASE)}
OF_JOBS = frozenset({POD_REFUSAL.kind, WORKLOAD.kind})  # is about a Job; one about a Job of others is not kept


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """The resource of a manifest. Raises KeyError for a kind that the control plane does not write."""
    return BY_KIND[manifest["kind"]]


def controller_uid(body: Mapping[str, Any]) -> str | None:
    """The uid of the object's controlling owner; of an Event, of what it is about."""
    if about := body.get("involvedObject"):
        return str(about.get("uid", ""))
    for reference in body.get("metadata", {}).get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["uid"])
    return None
