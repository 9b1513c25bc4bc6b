"""KUBEBUILDER_ASSETS: a folder as `setup-envtest` lays it out is enough, also where controllers are needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.cluster import binaries
from tests.cluster.control_plane import start_control_plane
from tests.cluster.errors import Unavailable


def test_programs_come_from_the_folder_and_the_controllers_from_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        built = binaries.kube_assets()
    except Unavailable as error:
        if os.environ.get("FINETUNE_REQUIRE_CLUSTER") == "1":
            raise
        pytest.skip(str(error))
    for name in binaries.API_SERVER_NAMES:
        (tmp_path / name).symlink_to(built / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    plane = start_control_plane(controller_manager=True)
    try:
        assert plane.kubectl.binary == tmp_path / "kubectl"
        assert plane.kubectl("get", "serviceaccount", "default", namespace="default")
    finally:
        plane.stop()
