"""Why the API server takes no pod of ours: in the words that the Job and Deployment controllers were answered.

A Job is created although its pods will be refused; only those controllers ever see the answer.
"""

from __future__ import annotations

import re

from finetune_api.conditions import FailureReason as Reason
from finetune_operator.finding import Finding

# Each attempt is for a pod of another name, and tells what others use just now: left out, so that one cause stays
# one message, and a status that waits is not written again and again.
ATTEMPT = re.compile(
    r"^(?:\(combined from similar events\): )?(?:Error creating: )?"
    r"(?:pods \"[^\"]*\" is forbidden: |Pod \"[^\"]*\" is invalid: )?"
)
USED = re.compile(r"\bused: \S+, ")

LIMITS = (
    "Bring compute.resources (serving.resources for a server) within the namespace's LimitRange, or change the "
    "LimitRange."
)
CAUSES: tuple[tuple[str, Reason, str], ...] = (
    ("exceeded quota", Reason.QUOTA_EXCEEDED, ""),
    (
        "failed quota",
        Reason.QUOTA_EXCEEDED,
        "Set the amounts that the message names in compute.resources (serving.resources for a server), and give the "
        "namespace a LimitRange with defaults for Prepare, which takes only scratch space from there.",
    ),
    (
        "violates PodSecurity",
        Reason.POD_REFUSED,
        "The pods meet Pod Security's level `restricted`; look at the namespace's labels "
        "pod-security.kubernetes.io/enforce and enforce-version.",
    ),
    (
        "admission webhook",
        Reason.POD_REFUSED,
        "Ask who runs the webhook that the message names, or change in the job what it objects to.",
    ),
    ("no PriorityClass", Reason.SPEC_INVALID, "Correct compute.priorityClassName, or create that PriorityClass."),
    # A LimitRange's greatest amount becomes the limit of a container that has none, and may be below what is asked for.
    ("must be less than or equal to", Reason.POD_REFUSED, LIMITS),
    ("per Container", Reason.POD_REFUSED, LIMITS),
    ("per Pod", Reason.POD_REFUSED, LIMITS),
)


def refusal_finding(message: str) -> Finding:
    """What the controller was answered, as a cause with advice."""
    words = USED.sub("", ATTEMPT.sub("", message)).strip()
    text = f"The cluster refuses the pod: {words}"
    for mark, reason, advice in CAUSES:
        if mark in words:
            return Finding(reason, text, advice)
    return Finding(Reason.POD_REFUSED, text)
