"""Queues: Kueue decides when a job's GPU stages may run. https://kueue.sigs.k8s.io"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from finetune_api.base import Rule
from finetune_api.fields import NAME
from finetune_api.placement import Placement


class Queueing(Placement):
    """Where pods run, and by leave of which queue."""

    queue_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        pattern=NAME,
        description="Kueue LocalQueue of the job's namespace, for Train and Evaluate: they start when it admits them. "
        "Prepare, which takes no GPU, does not wait.",
    )
    workload_priority_class_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        pattern=NAME,
        description="Kueue WorkloadPriorityClass: the place in the queue, and who gives way to whom. When absent, "
        "priorityClassName decides. A pod's own priority does not change with it.",
    )
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            "!has(self.workloadPriorityClassName) || has(self.queueName)",
            "workloadPriorityClassName: only a queue knows it; set compute.queueName, or remove it",
            lambda compute: compute.workload_priority_class_name is None or compute.queue_name is not None,
        ),
    )
