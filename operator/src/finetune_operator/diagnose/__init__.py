"""From the facts of Jobs and pods to (reason, message): what is wrong, in the cluster's own words."""

from finetune_operator.diagnose.chain import first_finding, look_again_after, lost_node
from finetune_operator.diagnose.facts import (
    current,
    ever_ran,
    has_failed,
    is_over,
    job_condition,
    last_summary,
    spent,
    summary_of,
)
from finetune_operator.diagnose.queue import held_back
from finetune_operator.diagnose.verdict import (
    deployment_trouble,
    is_explained,
    job_failure,
    pod_trouble,
    refused_pod,
    to_failure,
)
from finetune_operator.finding import Finding

__all__ = [
    "Finding",
    "current",
    "deployment_trouble",
    "ever_ran",
    "first_finding",
    "has_failed",
    "held_back",
    "is_explained",
    "is_over",
    "job_condition",
    "job_failure",
    "last_summary",
    "look_again_after",
    "lost_node",
    "pod_trouble",
    "refused_pod",
    "spent",
    "summary_of",
    "to_failure",
]
