"""The golden manifests before a real API server: its defaults, its validation, and Pod Security `restricted`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.control_plane import ControlPlane

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("*.yaml"))
NAMESPACE = "golden"


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    control_plane.kubectl.make_namespace(NAMESPACE)
    return control_plane


def dry_run(plane: ControlPlane, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest))
    answer: dict[str, Any] = plane.kubectl.json("apply", "--server-side", "--dry-run=server", "-f", path)
    return answer


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_golden_manifest_is_accepted(plane: ControlPlane, path: Path, tmp_path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    manifest["metadata"] |= {"namespace": NAMESPACE}
    assert dry_run(plane, tmp_path, manifest)["metadata"]["name"] == manifest["metadata"]["name"]


PODS = [path for path in FILES if path.stem.startswith(("job", "deployment"))]


@pytest.mark.parametrize("path", PODS, ids=[path.stem for path in PODS])
def test_every_pod_is_admitted_under_pod_security_restricted(plane: ControlPlane, path: Path, tmp_path: Path) -> None:
    template = yaml.safe_load(path.read_text())["spec"]["template"]
    spec = {**template["spec"], "serviceAccountName": "default"}
    spec.pop("priorityClassName", None)  # the class itself would have to exist
    meta = {**template["metadata"], "name": "golden", "namespace": NAMESPACE}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    plane.kubectl.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}, namespace=NAMESPACE
    )
    assert dry_run(plane, tmp_path, pod)["spec"]["automountServiceAccountToken"] is False
