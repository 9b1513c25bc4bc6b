"""The node for use by hand: the commands of docs/development.md, word for word, from images to the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import documented
from tests.cluster import binaries, debian
from tests.cluster.errors import Unavailable
from tests.cluster.node import running
from tests.documented import NODE, ROOT


@pytest.fixture
def no_node() -> None:
    """This machine can have a node, and has none now: one of this test run, or a developer's own, must not be ended."""
    if os.environ.get("KUBECONFIG_E2E"):
        pytest.skip("KUBECONFIG_E2E is set: no node is started on this machine")
    try:
        debian.require_root("a Kubernetes node")
        binaries.kube_assets()
    except Unavailable as error:
        if os.environ.get("FINETUNE_REQUIRE_CLUSTER") == "1":
            raise
        pytest.skip(str(error))
    if running() or not binaries.unlocked("node"):
        pytest.skip("a node is running; this test comes first in `make e2e`")


@pytest.mark.usefixtures("no_node")
def test_a_node_by_hand_has_images_and_a_default_storage_class(tmp_path: Path) -> None:
    lines = [command.text for command in documented.commands(NODE)]
    assert lines[-1].endswith("tests.cluster down")
    look = ["kubectl get nodes", "kubectl get storageclass", "helm version --short", "which kubectl"]
    script = "\n".join([*lines[:-1], *look])
    # `python` and `make setup` are those of the environment that runs this test.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    try:
        shown = subprocess.run(
            ["bash", "-ec", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200
        )
    finally:
        ended = subprocess.run(["bash", "-ec", lines[-1]], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert ended.returncode == 0, ended.stderr
    assert "localhost/finetune-trainer:" in shown.stdout
    assert "node-1   Ready" in shown.stdout
    assert "(default)" in shown.stdout
    assert not running()
