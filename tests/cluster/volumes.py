"""A folder of this machine as the volume behind a PersistentVolumeClaim."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.cluster.kubectl import Kubectl

# The user and group that our pods run as. hostPath volumes do not take over fsGroup, so the files must be theirs.
POD_ID = 65532
DEFAULT_CLASS = "folder"


def bind(
    kubectl: Kubectl, *, namespace: str, claim: str, folder: Path, size: str = "20Gi", access: str = "ReadWriteOnce"
) -> None:
    """Makes a PersistentVolume on the folder, and the claim bound to it; pods of ours may write everything in it."""
    give_to_pods(folder)
    volume = f"{namespace}-{claim}"
    reference = {"namespace": namespace, "name": claim}
    kubectl.apply(_volume(volume, folder, size=size, access=access, claim=reference))
    kubectl.apply(claim_manifest(namespace, claim, size=size, access=access, storage_class="", volume=volume))

    def bound() -> bool:
        found = kubectl.get("persistentvolumeclaim", claim, namespace=namespace)
        return found is not None and found["status"].get("phase") == "Bound"

    kubectl.wait_until(bound, 60, f"PersistentVolumeClaim {namespace}/{claim} bound", namespace)


def offer_default_class(kubectl: Kubectl, folder: Path, count: int = 40) -> None:
    """A default StorageClass with this many volumes below the folder, each for one claim."""
    marked = {"storageclass.kubernetes.io/is-default-class": "true"}
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": DEFAULT_CLASS, "annotations": marked},
        "provisioner": "kubernetes.io/no-provisioner",
    }
    names = [f"{DEFAULT_CLASS}-{number}" for number in range(count)]
    for name in names:
        give_to_pods(folder / name)
    kubectl.apply(storage_class, *(_volume(name, folder / name, storage_class=DEFAULT_CLASS) for name in names))


def give_to_pods(folder: Path) -> None:
    """Makes folder and content belong to the pods' user; new files in it get the pods' group."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, _, names in os.walk(folder):
        os.chown(place, POD_ID, POD_ID)
        os.chmod(place, 0o2775)
        for name in names:
            os.chown(os.path.join(place, name), POD_ID, POD_ID, follow_symlinks=False)


def claim_manifest(
    namespace: str,
    claim: str,
    *,
    size: str = "20Gi",
    access: str = "ReadWriteOnce",
    storage_class: str | None = None,
    volume: str | None = None,
) -> dict[str, Any]:
    """A PersistentVolumeClaim; without a storage class the cluster's default one is meant."""
    spec: dict[str, Any] = {"accessModes": [access], "resources": {"requests": {"storage": size}}}
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    if volume is not None:
        spec["volumeName"] = volume
    metadata = {"name": claim, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def _volume(
    name: str,
    folder: Path,
    *,
    size: str = "20Gi",
    access: str = "ReadWriteOnce",
    storage_class: str = "",
    claim: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A PersistentVolume on the folder; with `claim` for that one only."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": [access],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": storage_class,
            "hostPath": {"path": str(folder.resolve()), "type": "Directory"},
            **({"claimRef": claim} if claim else {}),
        },
    }
