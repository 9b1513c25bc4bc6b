"""What a stage sees, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from finetune_api.job import FineTuneJob
from finetune_api.status import RunStatus
from finetune_operator.plan import Manifest, ObjectRef, Observed
from finetune_operator.settings import Settings
from finetune_operator.stages.suspension import Pause
from finetune_operator.times import stamp


@dataclass(frozen=True, slots=True)
class View:
    """The input of every stage. `observed` holds only what belongs to the job; `foreign` the KIND/NAME in its way."""

    job: FineTuneJob
    observed: Observed
    foreign: frozenset[str]
    now: datetime
    settings: Settings

    @property
    def time(self) -> str:
        """now as Kubernetes writes it, in whole seconds."""
        return stamp(self.now)


@dataclass(frozen=True, slots=True)
class Step:
    """The answer of a stage: the run as it stands now, and what is to be written."""

    run: RunStatus
    apply: tuple[Manifest, ...] = ()
    delete: tuple[ObjectRef, ...] = ()
    done: bool = False
    requeue_after: float | None = None
    pause: Pause | None = None
    unread: bool = False  # what its pods said last has to be read first


def own_children(job: FineTuneJob, observed: Observed) -> tuple[Observed, frozenset[str]]:
    """The observed children without those of a predecessor of the same name, and the names of those."""
    foreign: set[str] = set()

    def owned(kind: str, manifests: Mapping[str, Manifest]) -> dict[str, Manifest]:
        kept = {}
        for name, manifest in manifests.items():
            if is_owned(job, manifest):
                kept[name] = manifest
            else:
                foreign.add(f"{kind}/{name}")
        return kept

    mine = replace(
        observed,
        jobs=owned("Job", observed.jobs),
        config_maps=owned("ConfigMap", observed.config_maps),
        deployments=owned("Deployment", observed.deployments),
        services=owned("Service", observed.services),
    )
    return mine, frozenset(foreign)


def is_owned(job: FineTuneJob, manifest: Manifest) -> bool:
    """Whether the object's controller is this very job. Without a uid on one side, the name must do."""
    for owner in manifest["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and owner.get("uid") and job.metadata.uid:
            return bool(owner["uid"] == job.metadata.uid)
    return True


def owner_uids(manifest: Manifest) -> list[str]:
    """The uids of the object's owners, as far as they are known."""
    return [owner["uid"] for owner in manifest["metadata"].get("ownerReferences") or () if owner.get("uid")]


def is_deleting(manifest: Manifest) -> bool:
    """Whether the object is on its way out; its end comes as an event."""
    return bool(manifest["metadata"].get("deletionTimestamp"))


def reference(manifest: Manifest, namespace: str) -> ObjectRef:
    """What names the object for deletion; one that does not say its kind is a Job. The uid keeps a successor of the
    same name safe."""
    meta: Mapping[str, Any] = manifest["metadata"]
    kind = str(manifest.get("kind") or "Job")
    default = {"Job": "batch/v1", "Deployment": "apps/v1"}.get(kind, "v1")
    return ObjectRef(
        api_version=str(manifest.get("apiVersion") or default),
        kind=kind,
        namespace=str(meta.get("namespace") or namespace),
        name=str(meta["name"]),
        uid=str(meta.get("uid") or ""),
    )
