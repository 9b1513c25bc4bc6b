"""Amounts, node labels and tolerations that make no sense: a part of the table of bad manifests."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad

QUANTITY = "write a quantity: a number, or a number with a unit, for example 4, 500m, 0.5 or 32Gi"
LABEL = "nodeSelector: every key must be a valid label key, for example nvidia.com/gpu.product"

PLACEMENT = (
    Bad(
        "memory in words",
        "compute: {resources: {limits: {memory: lots}}}",
        "spec.compute.resources.limits.memory",
        QUANTITY,
    ),
    Bad(
        "memory with a blank",
        "compute: {resources: {limits: {memory: 32 GB}}}",
        "spec.compute.resources.limits.memory",
        QUANTITY,
    ),
    Bad("negative cpu", "serving: {resources: {requests: {cpu: -1}}}", "spec.serving.resources.requests.cpu", QUANTITY),
    Bad(
        "more memory asked for than allowed",
        "compute: {resources: {requests: {memory: 32Gi}, limits: {memory: 32G}}}",
        "spec.compute.resources",
        "resources: requests.memory is above its limit; raise the limit or lower the request",
    ),
    Bad(
        "more cpu asked for than allowed",
        "serving: {resources: {requests: {cpu: 2}, limits: {cpu: 1900m}}}",
        "spec.serving.resources",
        "resources: requests.cpu is above its limit",
    ),
    Bad(
        "more scratch asked for than allowed",
        "compute: {resources: {requests: {ephemeral-storage: 2Gi}, limits: {ephemeral-storage: 1Gi}}}",
        "spec.compute.resources",
        "resources: requests.ephemeral-storage is above its limit",
    ),
    Bad("a label with a blank", "compute: {nodeSelector: {'gpu type': a}}", "spec.compute.nodeSelector", LABEL),
    Bad("a label with two slashes", "serving: {nodeSelector: {a/b/c: d}}", "spec.serving.nodeSelector", LABEL),
    Bad(
        "a value with Exists",
        "compute: {tolerations: [{key: gpu, operator: Exists, value: 'yes'}]}",
        "spec.compute.tolerations[0]",
        "value: must be empty when operator is Exists; remove it",
    ),
    Bad(
        "a toleration of nothing",
        "compute: {tolerations: [{value: 'yes'}]}",
        "spec.compute.tolerations[0]",
        "key: give the taint's key, or set operator to Exists",
    ),
    Bad(
        "seconds without NoExecute",
        "serving: {tolerations: [{key: gpu, value: 'yes', effect: NoSchedule, tolerationSeconds: 5}]}",
        "spec.serving.tolerations[0]",
        "tolerationSeconds: only a NoExecute taint has it; set effect to NoExecute or remove it",
    ),
)
