"""What a person should do next: the reason's own sentence, or a sharper one where the message says more."""

from __future__ import annotations

from itertools import pairwise

from finetune_api.conditions import FailureReason as Reason
from finetune_api.reasons import REASONS

OWN_LIMIT = (
    "Raise limits.ephemeral-storage in compute.resources (serving.resources for a server); /tmp is as large as that."
)


def advice_for(reason: Reason, message: str = "") -> str:
    """The sentence for the reason, sharpened where the message says more."""
    if reason is Reason.UNSCHEDULABLE:
        return _unschedulable(message)
    if reason is Reason.EVICTED and "limit" in message:  # the pod's own, not a lack of the node
        return OWN_LIMIT
    return REASONS[reason].advice


def _unschedulable(message: str) -> str:
    lacking = [word.rstrip(",.") for word in _words_after(message, "Insufficient") if "/" in word]
    if lacking:
        return (
            f"No node has a free {lacking[0]}: wait for one, add a GPU node, or correct compute.gpuResource, "
            "compute.nodeSelector and compute.tolerations (compute.gpus: 0 trains on the CPU)."
        )
    if "untolerated taint" in message or "didn't match Pod's node affinity" in message:
        return "Correct nodeSelector and tolerations in compute (or serving) so that a node fits, or add such a node."
    return REASONS[Reason.UNSCHEDULABLE].advice


def _words_after(text: str, marker: str) -> list[str]:
    words = text.split()
    return [after for word, after in pairwise(words) if word == marker]
