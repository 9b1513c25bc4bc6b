"""Whether an object in the cluster still is what we wrote, whoever changed it since.

Only fields that we write are looked at: what the API server fills in, and what others add in fields that we leave
open (`kubectl rollout restart` adds an annotation to the pod template), is no difference. A list is ours as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.fields import quantity
from finetune_operator.plan import Manifest

# Who sets `replicas` through the scale subresource on somebody's behalf: HorizontalPodAutoscaler and KEDA.
# A person's `kubectl scale` is none of them.
AUTOSCALERS = frozenset({"kube-controller-manager", "keda"})
QUANTITIES = frozenset({"requests", "limits", "sizeLimit"})  # the API server writes 1000m as 1
WHOLE = frozenset({"selector", "nodeSelector"})  # one more label in here, and no pod or no node matches


def has_drifted(existing: Manifest, desired: Manifest) -> bool:
    """Whether a field that `desired` sets has another value in `existing`."""
    wanted = desired["spec"]
    if is_autoscaled(existing):
        wanted = {key: value for key, value in wanted.items() if key != "replicas"}
    found = existing["metadata"]
    return not (
        holds(existing.get("spec"), wanted)
        and all(holds(found.get(part), desired["metadata"].get(part)) for part in ("labels", "annotations"))
    )


def is_autoscaled(deployment: Manifest) -> bool:
    """Whether an autoscaler set the number of replicas last."""
    return any(
        entry.get("subresource") == "scale" and entry.get("manager") in AUTOSCALERS
        for entry in deployment["metadata"].get("managedFields") or ()
    )


def holds(found: Any, wanted: Any, key: str = "") -> bool:
    """Whether everything of `wanted` is in `found`. Nothing is the same as empty: the API server leaves it out."""
    if wanted is None or (not wanted and not found):
        return True
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and _holds_all(found, wanted, key)
    if key in QUANTITIES:
        return found is not None and _same_quantity(str(found), str(wanted))
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(holds(one, other) for one, other in zip(found, wanted, strict=True))
        )
    return bool(found == wanted)


def _holds_all(found: Mapping[str, Any], wanted: Mapping[str, Any], key: str) -> bool:
    if key in WHOLE and found.keys() != wanted.keys():
        return False
    return all(holds(found.get(name), part, key if key in QUANTITIES else name) for name, part in wanted.items())


def _same_quantity(found: str, wanted: str) -> bool:
    try:
        return found == wanted or quantity(found) == quantity(wanted)
    except ValueError:
        return True  # nobody can tell, and what cannot be told must not be written again and again
