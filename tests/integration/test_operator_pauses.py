"""Suspension and queues on a real API server with its controllers: Jobs go and come, and what a queue writes stays.

Kueue is played by the tests: its Workload is a CRD without a schema. tests/e2e/test_kueue.py has the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import wait_until
from tests.operator_process import (
    GROUP,
    PATIENCE,
    Kubelet,
    children,
    condition,
    job_manifest,
    make_namespace,
    prepared,
    running_operator,
    status_of,
    wait_idle,
)
from tests.simulator import good_summary

WORKLOADS: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "workloads.kueue.x-k8s.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
    },
    "spec": {
        "group": "kueue.x-k8s.io",
        "names": {"kind": "Workload", "plural": "workloads"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def plane(control_plane_with_controllers: ControlPlane) -> Iterator[ControlPlane]:
    plane = prepared(control_plane_with_controllers)
    plane.kubectl.apply(WORKLOADS)
    plane.kubectl.wait_until(lambda: plane.kubectl.json("get", "workloads", "-A"), PATIENCE, "the CRD of Workloads")
    yield plane
    plane.kubectl("delete", "crd", "workloads.kueue.x-k8s.io")


def selector(stage: str) -> str:
    return f"{GROUP}/job=travel,{GROUP}/stage={stage}"


def wait_for(plane: ControlPlane, namespace: str, kind: str, wanted: tuple[str, str]) -> None:
    plane.kubectl.wait_until(
        lambda: condition(status_of(plane, namespace, "travel"), kind) == wanted, PATIENCE, str(wanted), namespace
    )


def patch(plane: ControlPlane, namespace: str, kind: str, name: str, body: dict[str, Any]) -> None:
    plane.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(body), namespace=namespace)


def failure(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = (status_of(plane, namespace, "travel").get("run") or {}).get("failure") or {}
    return found


def test_a_suspended_job_has_neither_job_nor_pod_and_goes_on(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "suspension")
    kubelet = Kubelet(plane, namespace)
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace) as operator:
        plane.kubectl.apply(job_manifest("travel", namespace))
        kubelet.end(selector("Prepare"), good_summary("Prepare", 1))
        kubelet.run(selector("Train"))
        patch(plane, namespace, "finetunejob", "travel", {"spec": {"suspend": True}})
        wait_for(plane, namespace, "Suspended", ("True", "Suspended"))
        assert "Job" not in [kind for kind, name, _ in children(plane, namespace) if name.endswith("train")]
        assert plane.kubectl.json("get", "pods", "-l", selector("Train"), namespace=namespace)["items"] == []
        wait_idle(operator)
        before = operator.writes()
        patch(plane, namespace, "finetunejob", "travel", {"metadata": {"annotations": {"example.com/n": "1"}}})
        wait_idle(operator)
        assert operator.writes() == before, "what is held is not written again"
        patch(plane, namespace, "finetunejob", "travel", {"spec": {"suspend": False}})
        for stage in ("Train", "Evaluate"):
            kubelet.end(selector(stage), good_summary(stage, 1))
        kubelet.run(selector("Serve"))
        wait_for(plane, namespace, "Ready", ("True", "Serving"))
    assert status_of(plane, namespace, "travel")["run"]["number"] == 1


def test_an_operator_that_should_watch_otherwise_ends_in_order(plane: ControlPlane, tmp_path: Path) -> None:
    """Kueue goes, which a watch tells long before the next list, and comes again; whoever starts the operator anew is a
    kubelet."""
    namespace = make_namespace(plane, "discovery")
    watched = {"FINETUNE_WATCH_NAMESPACES": namespace}
    with running_operator(plane, tmp_path, name="with", **watched, FINETUNE_RESYNC_SECONDS="3600") as operator:
        operator.wait_for_log("kueue=v1beta1")
        operator.wait_for_log("resync=done")
        plane.kubectl("delete", "crd", "workloads.kueue.x-k8s.io")
        assert operator.component.process
        assert operator.component.process.wait(PATIENCE) == 0
        operator.wait_for_log("kueue=absent before=v1beta1 restarting")
    with running_operator(plane, tmp_path, name="without", **watched, FINETUNE_RESYNC_SECONDS="1") as operator:
        operator.wait_for_log("kueue=absent")
        plane.kubectl.apply(WORKLOADS)
        assert operator.component.process
        assert operator.component.process.wait(PATIENCE) == 0
        operator.wait_for_log("kueue=v1beta1 before=absent restarting")
    plane.kubectl.wait_until(lambda: plane.kubectl.json("get", "workloads", "-A"), PATIENCE, "the CRD of Workloads")


def workload(plane: ControlPlane, namespace: str, message: str) -> None:
    """What Kueue makes of the Train Job, with why it waits."""
    job = plane.kubectl.json("get", "job", "travel-r1-train", namespace=namespace)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "travel-r1-train", "uid": job["metadata"]["uid"]}
    meta = {"name": "job-travel-r1-train-abcde", "ownerReferences": [{**owner, "controller": True}]}
    said = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": message}
    body = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload", "metadata": meta}
    plane.kubectl.apply({**body, "spec": {"active": True}, "status": {"conditions": [said]}}, namespace=namespace)


def test_a_queue_s_reason_shows_and_what_it_writes_stays(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "queues")
    kubelet = Kubelet(plane, namespace)
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace) as operator:
        operator.wait_for_log("kueue=v1beta1")
        plane.kubectl.apply(job_manifest("travel", namespace, compute={"gpus": 0, "queueName": "team-a"}))
        kubelet.end(selector("Prepare"), good_summary("Prepare", 1))
        wait_for(plane, namespace, "Ready", ("False", "Queued"))
        workload(plane, namespace, "LocalQueue team-a doesn't exist")
        wait_for(plane, namespace, "Ready", ("False", "QueueUnavailable"))
        assert "doesn't exist" in failure(plane, namespace)["message"]
        workload(plane, namespace, "insufficient unused quota")
        wait_for(plane, namespace, "Ready", ("False", "Queued"))
        admitted = {"spec": {"suspend": False, "template": {"spec": {"nodeSelector": {"pool": "a"}}}}}
        patch(plane, namespace, "job", "travel-r1-train", admitted)
        assert kubelet.run(selector("Train"))["spec"]["nodeSelector"] == {"pool": "a"}
        wait_for(plane, namespace, "Ready", ("False", "Training"))
        patch(plane, namespace, "job", "travel-r1-train", {"spec": {"suspend": True}})
        wait_for(plane, namespace, "Ready", ("False", "Queued"))
        wait_idle(operator)
        patch(plane, namespace, "job", "travel-r1-train", {"spec": {"suspend": False}})
        kubelet.end(selector("Train"), good_summary("Train", 1))
        wait_until(lambda: plane.kubectl.get("job", "travel-r1-evaluate", namespace), PATIENCE, "Evaluate")
    job = plane.kubectl.json("get", "job", "travel-r1-train", namespace=namespace)
    assert job["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "a"}
    assert job["metadata"]["generation"] == 4, "made once, let go, taken back, let go: nobody else wrote its spec"
