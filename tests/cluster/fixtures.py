"""The cluster as pytest fixtures; registered as a plugin by the root conftest.

A machine that cannot have a cluster skips these tests, and the reason says how to have it. With
FINETUNE_REQUIRE_CLUSTER=1 (CI) that is an error instead, so that nothing is left out unnoticed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.control_plane import ControlPlane, start_control_plane
from tests.cluster.environment import Cluster, ForeignCluster, LocalCluster
from tests.cluster.errors import Unavailable
from tests.cluster.node import Node, start_node


@contextlib.contextmanager
def _available(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shows the progress of builds on the terminal, and turns Unavailable into a skip with its reason."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            yield
    except Unavailable as error:
        leave_out(error)


def leave_out(error: Exception) -> None:
    """Skip the test for this reason, or raise it where nothing may be left out."""
    if os.environ.get("FINETUNE_REQUIRE_CLUSTER") == "1":
        raise error
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """etcd and the API server, shared by the session's tests; each test takes namespaces of its own."""
    with _available(request):
        plane = start_control_plane()
    yield plane
    plane.stop()


@pytest.fixture(scope="session")
def control_plane_with_controllers(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """Like control_plane, with the controllers: Jobs get pods (that nobody runs), deleted owners' children go."""
    with _available(request):
        # Without nodes every pod that is being deleted would be taken for one that no node will ever end.
        flags = ["--controllers=*,-pod-garbage-collector-controller"]
        plane = start_control_plane(controller_manager=True, controller_manager_flags=flags)
    yield plane
    plane.stop()


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A whole Kubernetes node on this machine (root)."""
    with _available(request):
        node = start_node()
    yield node
    node.stop()


@pytest.fixture(scope="session")
def node_cluster(request: pytest.FixtureRequest) -> Cluster:
    """A whole cluster: the one of KUBECONFIG_E2E when that is set, or else the node on this machine."""
    own = os.environ.get("KUBECONFIG_E2E")
    if own:
        with _available(request):
            return ForeignCluster(Path(own))
    return LocalCluster(request.getfixturevalue("node"))


@pytest.fixture(scope="session")
def operator_image(request: pytest.FixtureRequest, node_cluster: Cluster) -> str:
    """The name of the operator's image, loaded into the cluster."""
    with _available(request):
        return node_cluster.operator_image()


@pytest.fixture(scope="session")
def trainer_image(request: pytest.FixtureRequest, node_cluster: Cluster) -> str:
    """The name of the trainer's image, loaded into the cluster."""
    with _available(request):
        return node_cluster.trainer_image()
