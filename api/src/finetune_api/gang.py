"""A training on several pods: how many, what else each gets, and how they are spread."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Int, Named, Rule
from finetune_api.fields import LABEL_KEY, ruled
from finetune_api.queueing import Queueing

EXTENDED = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
MOST_NODES = 64

_CHECKED, _DECLARED = ruled(
    Rule(
        f"self.all(key, size(key) <= 316 && key.matches('{EXTENDED}'))",
        "extendedResources: write DOMAIN/NAME, for example rdma/hca; cpu and memory go into resources, GPUs into gpus",
        lambda amounts: all(len(key) <= 316 and re.search(EXTENDED, key) for key in amounts),
    )
)
ExtendedResources = Annotated[dict[str, Annotated[Int, Field(ge=1, le=64)]], Field(max_length=8), _CHECKED, _DECLARED]


class Unsatisfiable(Named):
    """As Kubernetes' topologySpreadConstraints have it."""

    DO_NOT_SCHEDULE = "DoNotSchedule"
    SCHEDULE_ANYWAY = "ScheduleAnyway"


class TopologySpread(ApiModel):
    """How the pods of one training are spread over the cluster."""

    topology_key: str = Field(
        default="kubernetes.io/hostname",
        min_length=1,
        max_length=316,
        pattern=LABEL_KEY,
        description="Label of the nodes whose values the pods are spread over, evenly.",
    )
    when_unsatisfiable: Unsatisfiable = Field(
        default=Unsatisfiable.SCHEDULE_ANYWAY,
        description="What happens to a pod that cannot be placed so: it waits, or it is placed all the same.",
    )


class Spreading(Queueing):
    """Where pods run, by leave of which queue, and how many train together."""

    nodes: Int = Field(
        default=1,
        ge=1,
        le=MOST_NODES,
        description="Pods that train together, each with gpus GPUs. Above 1 output.claimName must be a claim that all "
        "of them can write (ReadWriteMany), or all must be on one node. When one is lost, all go on from the newest "
        "checkpoint. Evaluation takes one.",
    )
    extended_resources: ExtendedResources = Field(
        default={}, description="Further extended resources of each training pod, by name, for example rdma/hca: 1."
    )
    topology_spread: TopologySpread = Field(
        default=TopologySpread(), description="How the pods of a training on several nodes are spread."
    )
    rules: ClassVar = Queueing.rules
