"""What goes wrong around a job on a real API server, and what the status says then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import wait_until
from tests.operator_process import (
    GROUP,
    PATIENCE,
    Kubelet,
    children,
    cluster_wide_rights,
    condition,
    job_manifest,
    make_namespace,
    prepared,
    running_operator,
    status_of,
)
from tests.simulator import good_summary


@pytest.fixture(scope="module")
def plane(control_plane_with_controllers: ControlPlane) -> ControlPlane:
    return prepared(control_plane_with_controllers)


def failure(plane: ControlPlane, namespace: str) -> dict[str, str]:
    return status_of(plane, namespace, "travel").get("run", {}).get("failure", {})


def wait_failure(plane: ControlPlane, namespace: str, reason: str) -> None:
    plane.kubectl.wait_until(
        lambda: failure(plane, namespace).get("reason") == reason, PATIENCE, f"failure {reason}", namespace
    )


def test_a_foreign_object_of_a_childs_name_is_left_alone_until_it_is_gone(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "conflict")
    foreign = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "travel-r1", "namespace": namespace},
        "data": {"mine": "yes"},
    }
    plane.kubectl.apply(foreign)
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        wait_failure(plane, namespace, "NameConflict")
        found = plane.kubectl.get("configmap", "travel-r1", namespace=namespace)
        assert found
        assert found["data"] == {"mine": "yes"}
        assert "ownerReferences" not in found["metadata"]
        plane.kubectl("delete", "configmap", "travel-r1", namespace=namespace)
        plane.kubectl.wait_until(
            lambda: failure(plane, namespace).get("reason") is None, PATIENCE, "no failure any more", namespace
        )
        assert ("ConfigMap", "travel-r1") in [each[:2] for each in children(plane, namespace)]


def test_a_quota_shows_and_ends_by_itself(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "quota")
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-jobs", "namespace": namespace},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    plane.kubectl.apply(quota)
    plane.kubectl.wait_until(
        lambda: (plane.kubectl.get("resourcequota", "no-jobs", namespace) or {}).get("status", {}).get("hard"),
        PATIENCE,
        "the quota in force",
    )
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        wait_failure(plane, namespace, "QuotaExceeded")
        assert "no-jobs" in failure(plane, namespace)["message"]
        plane.kubectl("delete", "resourcequota", "no-jobs", namespace=namespace)
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 2, PATIENCE, "the Job", namespace)
        plane.kubectl.wait_until(lambda: not failure(plane, namespace), PATIENCE, "no failure", namespace)


def test_a_child_that_was_deleted_is_made_again(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "healing")
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        for stage in ("Prepare", "Train", "Evaluate"):
            Kubelet(plane, namespace).end(f"{GROUP}/job=travel,{GROUP}/stage={stage}", good_summary(stage, 1))
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 6, PATIENCE, "all children", namespace)
        before = set(children(plane, namespace))
        plane.kubectl("delete", "deployment,service", "travel-serve", namespace=namespace)
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 6, PATIENCE, "all again", namespace)
        assert len(before & set(children(plane, namespace))) == 4


def test_a_changed_server_is_put_right_and_the_annotations_of_others_stay(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "replacing")
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        job = job_manifest("travel", namespace, serving={"nodeSelector": {"pool": "a"}})
        plane.kubectl.apply(job)
        for stage in ("Prepare", "Train", "Evaluate"):
            Kubelet(plane, namespace).end(f"{GROUP}/job=travel,{GROUP}/stage={stage}", good_summary(stage, 1))
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 6, PATIENCE, "all children", namespace)
        address = (plane.kubectl.get("service", "travel-serve", namespace) or {})["spec"]["clusterIP"]
        plane.kubectl("annotate", "deployment", "travel-serve", "example.com/theirs=1", namespace=namespace)
        plane.kubectl.apply(job_manifest("travel", namespace, serving={"replicas": 2}))

        def deployment() -> dict[str, object]:
            return plane.kubectl.get("deployment", "travel-serve", namespace) or {}

        plane.kubectl.wait_until(lambda: deployment()["spec"]["replicas"] == 2, PATIENCE, "two replicas", namespace)
        assert "nodeSelector" not in deployment()["spec"]["template"]["spec"]
        assert deployment()["metadata"]["annotations"]["example.com/theirs"] == "1"
        assert (plane.kubectl.get("service", "travel-serve", namespace) or {})["spec"]["clusterIP"] == address


def test_a_stored_spec_that_this_version_refuses_is_stalled_not_fatal(plane: ControlPlane, tmp_path: Path) -> None:
    """As after an upgrade that narrowed a rule: the object was stored under the older CRD."""
    namespace = make_namespace(plane, "narrowed")
    crd = f"finetunejobs.{GROUP}"
    relaxed = plane.kubectl.json("get", "crd", crd)
    schema = relaxed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    schema["properties"]["evaluation"]["properties"]["maxExamples"].pop("maximum")
    relaxed["metadata"].pop("managedFields", None)
    plane.kubectl("replace", "-f", "-", input=json.dumps(relaxed))
    try:
        bad = job_manifest("travel", namespace, evaluation={"maxExamples": 99_999_999})
        plane.kubectl.wait_until(lambda: plane.kubectl.apply(bad), PATIENCE, "the relaxed rule")
    finally:
        prepared(plane)
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace) as operator:
        plane.kubectl.apply(job_manifest("healthy", namespace))
        plane.kubectl.wait_until(
            lambda: condition(status_of(plane, namespace, "travel"), "Stalled") == ("True", "SpecInvalid"),
            PATIENCE,
            "Stalled",
            namespace,
        )
        message = next(
            each["message"] for each in status_of(plane, namespace, "travel")["conditions"] if each["type"] == "Stalled"
        )
        assert "spec.evaluation.maxExamples" in message
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 2, PATIENCE, "the other job", namespace)
        assert operator.metric("finetune_reconcile_seconds_count", outcome="fault") == 0


def test_the_whole_cluster_is_served_when_no_namespace_is_named(plane: ControlPlane, tmp_path: Path) -> None:
    plane.kubectl.make_namespace("wide-a")
    plane.kubectl.make_namespace("wide-b")
    with cluster_wide_rights(plane), running_operator(plane, tmp_path) as operator:
        plane.kubectl.apply(job_manifest("travel", "wide-a"), job_manifest("travel", "wide-b"))
        for namespace in ("wide-a", "wide-b"):
            plane.kubectl.wait_until(
                lambda namespace=namespace: len(children(plane, namespace)) == 2, PATIENCE, "children", namespace
            )
        assert not operator.metric("finetune_api_requests_total", code="403")


def test_an_api_server_that_hangs_is_waited_out(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "hanging")
    variables = {
        "FINETUNE_WATCH_NAMESPACES": namespace,
        "FINETUNE_REQUEST_SECONDS": "1",
        "FINETUNE_RESYNC_SECONDS": "2",
    }
    with running_operator(plane, tmp_path, **variables) as operator:
        plane.kubectl.apply(job_manifest("travel", namespace))
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 2, PATIENCE, "two children", namespace)
        plane.pause_api_server()
        try:
            operator.wait_for_log("resync=failed")
        finally:
            plane.resume_api_server()
        Kubelet(plane, namespace).end(f"{GROUP}/job=travel,{GROUP}/stage=Prepare", good_summary("Prepare", 1))
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 3, PATIENCE, "the next stage", namespace)
        wait_until(lambda: operator.get("/healthz")[0] == 200, PATIENCE, "healthy")
