"""Whose servers are replaced when it is the platform that wants them otherwise: another image, another version.

That concerns all jobs at the same moment, and each needs room for one more server while it lasts. So only those of
`Settings.server_rollouts` jobs are replaced at a time; the others stay as they are, and answer. What a user asks for, a
promotion, what somebody else has changed, and a server that does not answer wait for nobody.
"""

from __future__ import annotations

from finetune_api.status import ModelStatus
from finetune_operator import names
from finetune_operator.plan import Manifest
from finetune_operator.stages.view import View, is_deleting


def awaits_turn(view: View, wanted: ModelStatus, desired: Manifest) -> bool:
    """Whether the Deployment is left as it is for now, although it shall be `desired`."""
    status, most = view.job.status, view.settings.server_rollouts
    existing = view.observed.deployments.get(desired["metadata"]["name"])
    if existing is None or is_deleting(existing) or not most or view.observed.rolling < most:
        return False
    answers = bool((existing.get("status") or {}).get("availableReplicas"))
    in_service = answers and status.model is not None and status.model.run == wanted.run
    seen = status.observed_generation == view.job.metadata.generation  # what the user wants was acted on
    key = names.ANNOTATION_SPEC_HASH
    otherwise = names.annotation(existing, key) != names.annotation(desired, key)
    return in_service and seen and otherwise
