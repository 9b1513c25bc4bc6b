"""Where pods run and what they get: the part of Kubernetes' pod that a user may decide."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Int, Rule
from finetune_api.fields import LABEL_KEY, LABEL_VALUE, NodeSelector, Quantity, quantity


class ResourceList(ApiModel):
    """Kubernetes quantities of one container."""

    cpu: Quantity | None = Field(default=None, description="CPU cores, for example 4 or 500m.")
    memory: Quantity | None = Field(default=None, description="Memory in bytes, for example 32Gi.")
    ephemeral_storage: Quantity | None = Field(
        default=None, alias="ephemeral-storage", description="Scratch space in bytes, for example 10Gi."
    )


def _limited(key: str, attribute: str) -> Rule:
    """A request above its limit would be refused when the pod is made; say so now."""
    given = f"has(self.requests) && has(self.limits) && has(self.requests.{key}) && has(self.limits.{key})"
    numbers = [f"quantity(string(self.{part}.{key}))" for part in ("requests", "limits")]

    def holds(resources: Resources) -> bool:
        request, limit = (getattr(part, attribute, None) for part in (resources.requests, resources.limits))
        return request is None or limit is None or quantity(request) <= quantity(limit)

    return Rule(
        f"!({given}) || {numbers[0]}.compareTo({numbers[1]}) <= 0",
        f"resources: requests.{attribute.replace('_', '-')} is above its limit; raise the limit or lower the request",
        holds,
    )


class Resources(ApiModel):
    """Requests and limits of one container. GPUs are asked for by `gpus`."""

    requests: ResourceList | None = Field(default=None, description="What is set aside.")
    limits: ResourceList | None = Field(default=None, description="What is never exceeded.")
    rules: ClassVar = (
        _limited("cpu", "cpu"),
        _limited("memory", "memory"),
        _limited("ephemeral__dash__storage", "ephemeral_storage"),
    )


class Toleration(ApiModel):
    """A Kubernetes toleration."""

    key: str | None = Field(
        default=None, max_length=316, pattern=LABEL_KEY, description="Taint key; empty with Exists tolerates all."
    )
    operator: Literal["Equal", "Exists"] = Field(
        default="Equal", description="Equal compares the value; Exists does not."
    )
    value: str | None = Field(default=None, max_length=63, pattern=LABEL_VALUE, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect."
    )
    toleration_seconds: Int | None = Field(
        default=None, ge=0, le=31536000, description="Seconds that a NoExecute taint is tolerated."
    )
    rules: ClassVar = (
        Rule(
            "self.operator != 'Exists' || !has(self.value)",
            "value: must be empty when operator is Exists; remove it",
            lambda taint: taint.operator != "Exists" or taint.value is None,
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds: only a NoExecute taint has it; set effect to NoExecute or remove it",
            lambda taint: taint.toleration_seconds is None or taint.effect == "NoExecute",
        ),
        Rule(
            "self.operator == 'Exists' || has(self.key)",
            "key: give the taint's key, or set operator to Exists",
            lambda taint: taint.operator == "Exists" or taint.key is not None,
        ),
    )


class Placement(ApiModel):
    """Where pods run and what they get."""

    resources: Resources = Field(default=Resources(), description="CPU and memory of the pod.")
    node_selector: NodeSelector = Field(default={}, description="Labels that the node must have.")
    tolerations: list[Toleration] = Field(
        default=[],
        max_length=32,
        description="Taints that the pods tolerate.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
