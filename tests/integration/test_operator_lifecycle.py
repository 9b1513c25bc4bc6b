"""From `kubectl apply` to Ready on a real API server with its controllers; the kubelet alone is played."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.operator_process import (
    PATIENCE,
    children,
    condition,
    install_crd,
    job_manifest,
    running_operator,
    status_of,
)


def test_apply_makes_the_config_the_job_and_the_status(
    control_plane_with_controllers: ControlPlane, tmp_path: Path
) -> None:
    plane = control_plane_with_controllers
    install_crd(plane)
    namespace = plane.kubectl.make_namespace("thin-path")
    with running_operator(plane, tmp_path):
        plane.kubectl.apply(job_manifest("travel", namespace))
        plane.kubectl.wait_until(
            lambda: condition(status_of(plane, namespace, "travel"), "Reconciling")[0] == "True",
            PATIENCE,
            "the first status",
            namespace,
        )
        assert [each[:2] for each in children(plane, namespace)] == [
            ("ConfigMap", "travel-r1"),
            ("Job", "travel-r1-prepare"),
        ]
