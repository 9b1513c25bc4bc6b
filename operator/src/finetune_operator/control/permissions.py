"""The rights that the code uses, as data. The chart's roles are made from it; a test runs the operator with
exactly these. No secrets, no wildcard, no pods to create.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api import GROUP, PLURAL


@dataclass(frozen=True, slots=True)
class Permission:
    """Verbs on one resource of one group, and why."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str
    names: tuple[str, ...] = ()

    def to_rule(self) -> dict[str, Any]:
        """A rule of a Role or ClusterRole."""
        rule: dict[str, Any] = {"apiGroups": [self.group], "resources": [self.resource], "verbs": list(self.verbs)}
        return {**rule, "resourceNames": list(self.names)} if self.names else rule


WATCH = ("list", "watch")

# In every namespace that is watched: a Role in each with watchNamespaces, else one ClusterRole.
WATCHED_NAMESPACES = (
    Permission(GROUP, PLURAL, WATCH, "The jobs."),
    Permission(GROUP, f"{PLURAL}/status", ("update",), "What it shows."),
    Permission("batch", "jobs", ("get", *WATCH, "create", "update", "delete"), "A Job for each stage."),
    Permission("", "configmaps", ("get", *WATCH, "create", "update", "delete"), "run.json of each run."),
    Permission("apps", "deployments", ("get", *WATCH, "create", "update", "delete"), "The servers."),
    Permission("", "services", ("get", *WATCH, "create", "update", "delete"), "Their name."),
    Permission("", "pods", WATCH, "Why a stage waits or failed; never created or changed by us."),
    Permission("", "events", WATCH, "Why no pod can be made of a Job: a quota, a LimitRange, Pod Security."),
    Permission("kueue.x-k8s.io", "workloads", WATCH, "Why a queue holds a Job back, where Kueue is installed."),
    Permission("events.k8s.io", "events", ("create",), "Events about a job."),
)


def own_namespace(lease_name: str = "finetune-operator") -> tuple[Permission, ...]:
    """In the operator's own namespace: the Lease of the leader. A name cannot limit `create`."""
    return (
        Permission("coordination.k8s.io", "leases", ("create",), "The Lease of the leader."),
        Permission("coordination.k8s.io", "leases", ("get", "update"), "Its renewal.", (lease_name,)),
    )


# Reading the keys of service account tokens is granted to all service accounts by Kubernetes itself
# (ClusterRole system:service-account-issuer-discovery); it is listed for clusters that took it away.
NON_RESOURCE_URLS = ("/.well-known/openid-configuration", "/openid/v1/jwks")


def rules(permissions: tuple[Permission, ...]) -> list[dict[str, Any]]:
    """The rules of a Role or ClusterRole."""
    return [permission.to_rule() for permission in permissions]
