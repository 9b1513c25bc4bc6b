"""Files that are mounted into the pod: claims and ConfigMaps, below the --sources folder."""

from __future__ import annotations

from pathlib import Path

from finetune_api.conditions import FailureReason
from finetune_api.spec import ConfigMapRef
from finetune_trainer.errors import UserInputError
from finetune_trainer.sources.location import Pvc


def claim_path(sources: Path, location: Pvc) -> Path:
    """The file or folder in the mounted claim. Links may point within the claim, and not out of it.

    Raises UserInputError (SourceUnavailable) when it is not there or lies outside.
    """
    root = sources / "pvc" / location.claim
    name = f"pvc://{location.claim}/{location.path}"
    if not root.is_dir():
        raise _unavailable(f"{name}: the claim is not mounted", f"create the PersistentVolumeClaim {location.claim}")
    return _inside(root, location.path, name, f"put it into the claim {location.claim}, or correct the path")


def config_map_path(sources: Path, reference: ConfigMapRef) -> Path:
    """The file of a ConfigMap's key. Raises UserInputError (SourceUnavailable) when it is not there."""
    root = sources / "configmap" / reference.name
    name = reference.told
    if not root.is_dir():
        raise _unavailable(f"{name}: the ConfigMap is not mounted", f"create the ConfigMap {reference.name}")
    return _inside(root, reference.key, name, f"add the key {reference.key} to the ConfigMap {reference.name}")


def _inside(root: Path, relative: str, name: str, advice: str) -> Path:
    # The kubelet mounts a ConfigMap as links into a hidden folder beside them, so links as such are no offence.
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise _unavailable(f"{name}: the path leads out of its source", "use a path without links to elsewhere")
    if not path.exists():
        raise _unavailable(f"{name}: there is no such file or folder{_neighbours(path)}", advice)
    return path


def _neighbours(path: Path) -> str:
    """What lies beside a missing file, which is where a misspelt name shows."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return ""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f" (beside it: {', '.join(names[:8])}{more})" if names else ""


def _unavailable(message: str, advice: str) -> UserInputError:
    return UserInputError(message, advice=advice, reason=FailureReason.SOURCE_UNAVAILABLE)
