"""What every child carries: owner, labels, and a hash of what was asked for."""

from __future__ import annotations

import json
from typing import Any

from finetune_api import API_VERSION, KIND
from finetune_api.job import FineTuneJob
from finetune_operator.names import ANNOTATION_SPEC_HASH, short_hash
from finetune_operator.plan import Manifest


def owner_reference(job: FineTuneJob) -> dict[str, Any]:
    """The FineTuneJob as controller. blockOwnerDeletion would need rights on finalizers; it is not needed."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
    }


def metadata(
    job: FineTuneJob, name: str, labels: dict[str, str], annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    """metadata of a child in the job's namespace."""
    return {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": labels,
        "annotations": dict(annotations or {}),
        "ownerReferences": [owner_reference(job)],
    }


def digest(value: object) -> str:
    """16 hexadecimal digits that stand for a JSON value."""
    return short_hash(json.dumps(value, sort_keys=True, separators=(",", ":")), 16)


def sealed(manifest: Manifest) -> Manifest:
    """The manifest with the hash of itself as annotation, so that a later pass sees whether it is still wanted."""
    meta = manifest["metadata"]
    annotations = {**meta["annotations"], ANNOTATION_SPEC_HASH: digest(manifest)}
    return {**manifest, "metadata": {**meta, "annotations": annotations}}
