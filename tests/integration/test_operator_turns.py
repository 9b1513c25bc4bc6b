"""After an upgrade servers are replaced in turn, on a real API server with its Deployment controller."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import wait_until
from tests.operator_process import (
    GROUP,
    PATIENCE,
    Kubelet,
    condition,
    job_manifest,
    make_namespace,
    running_operator,
    status_of,
    wait_idle,
)
from tests.simulator import good_summary

OLD, NEW = "finetune-trainer:0.1.0", "finetune-trainer:0.2.0"
JOBS = ("north", "south")


def newest_server(plane: ControlPlane, namespace: str, job: str) -> str:
    """A selector of the server that has not started yet."""
    selector = f"{GROUP}/job={job},{GROUP}/stage=Serve"

    def waiting() -> list[str]:
        items = plane.kubectl.json("get", "pods", "-l", selector, namespace=namespace)["items"]
        return [
            each["metadata"]["labels"]["pod-template-hash"] for each in items if each["status"]["phase"] == "Pending"
        ]

    [template] = plane.kubectl.wait_until(waiting, PATIENCE, "the new server", namespace)
    return f"{selector},pod-template-hash={template}"


def test_servers_of_one_job_at_a_time_get_the_new_image_and_the_other_answers_meanwhile(
    plane: ControlPlane, tmp_path: Path
) -> None:
    namespace = make_namespace(plane, "turns")
    kubelet = Kubelet(plane, namespace)
    variables = {"FINETUNE_WATCH_NAMESPACES": namespace, "FINETUNE_RESYNC_SECONDS": "3600"}

    def images() -> dict[str, str]:
        found = {name: plane.kubectl.get("deployment", f"{name}-serve", namespace) for name in JOBS}
        return {
            name: each["spec"]["template"]["spec"]["containers"][0]["image"] for name, each in found.items() if each
        }

    def ready(name: str) -> bool:
        return condition(status_of(plane, namespace, name), "Ready")[0] == "True"

    with running_operator(plane, tmp_path, name="old", **variables, FINETUNE_TRAINER_IMAGE=OLD):
        plane.kubectl.apply(*(job_manifest(name, namespace) for name in JOBS))
        for stage in ("Prepare", "Train", "Evaluate"):
            for name in JOBS:
                kubelet.end(f"{GROUP}/job={name},{GROUP}/stage={stage}", good_summary(stage, 1))
        for name in JOBS:
            kubelet.run(f"{GROUP}/job={name},{GROUP}/stage=Serve")
            plane.kubectl.wait_until(lambda name=name: ready(name), PATIENCE, "Ready", namespace)
    bounded = {**variables, "FINETUNE_TRAINER_IMAGE": NEW, "FINETUNE_SERVER_ROLLOUTS": "1"}
    with running_operator(plane, tmp_path, name="new", **bounded) as operator:
        operator.wait_for_log("resync=done")
        wait_until(lambda: NEW in images().values(), PATIENCE, "the first servers", operator.component.tail)
        wait_idle(operator)
        first, second = sorted(JOBS, key=lambda name: images()[name], reverse=True)
        assert images() == {first: NEW, second: OLD}
        assert not ready(first), "its new server is not ready yet"
        assert ready(second)
        assert operator.metric("finetune_servers_waiting") == 1

        kubelet.run(newest_server(plane, namespace, first))
        wait_until(lambda: set(images().values()) == {NEW}, PATIENCE, "the second's turn", operator.component.tail)
        assert operator.metric("finetune_servers_waiting") == 0
