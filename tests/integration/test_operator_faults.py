"""What goes wrong around a job on a real API server, and what the status says then."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import wait_until
from tests.operator_process import (
    GROUP,
    PATIENCE,
    Kubelet,
    OperatorProcess,
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


@contextlib.contextmanager
def without_rule(plane: ControlPlane, path: str, rule: str) -> Iterator[None]:
    """The CRD of another version, for the length of a block: a field without one of its rules."""
    relaxed = plane.kubectl.json("get", "crd", f"finetunejobs.{GROUP}")
    schema = relaxed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for part in path.split("."):
        schema = schema["properties"][part]
    schema.pop(rule)
    relaxed["metadata"].pop("managedFields", None)
    plane.kubectl("replace", "-f", "-", input=json.dumps(relaxed))
    try:
        yield
    finally:
        prepared(plane)


def test_a_stored_spec_that_this_version_refuses_is_stalled_not_fatal(plane: ControlPlane, tmp_path: Path) -> None:
    """As after an upgrade that narrowed a rule: the object was stored under the older CRD."""
    namespace = make_namespace(plane, "narrowed")
    bad = job_manifest("travel", namespace, evaluation={"maxExamples": 99_999_999})
    with without_rule(plane, "spec.evaluation.maxExamples", "maximum"):
        plane.kubectl.wait_until(lambda: plane.kubectl.apply(bad), PATIENCE, "the relaxed rule")
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


def events_of(plane: ControlPlane, namespace: str, reason: str) -> list[dict[str, Any]]:
    found = plane.kubectl.json("get", "events.events.k8s.io", namespace=namespace)["items"]
    return [each for each in found if each["reason"] == reason and each["regarding"]["kind"] == "FineTuneJob"]


def test_a_status_of_a_newer_version_is_told_and_left_alone(plane: ControlPlane, tmp_path: Path) -> None:
    """As after a downgrade: the status has a word that this version does not know."""
    namespace = make_namespace(plane, "downgraded")
    with running_operator(plane, tmp_path, name="newer", FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 2, PATIENCE, "two children", namespace)
        plane.kubectl.wait_until(lambda: status_of(plane, namespace, "travel"), PATIENCE, "a status", namespace)

    def write(trigger: str) -> str:
        body = json.dumps({"status": {"run": {"trigger": trigger}}})
        flags = ("--subresource=status", "--type=merge", "-p", body)
        return plane.kubectl("patch", "finetunejob", "travel", *flags, namespace=namespace)

    with without_rule(plane, "status.run.trigger", "enum"):
        plane.kubectl.wait_until(lambda: write("Scheduled"), PATIENCE, "the relaxed rule")
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace) as operator:
        plane.kubectl.wait_until(
            lambda: events_of(plane, namespace, "StatusUnreadable"), PATIENCE, "the Event", namespace
        )
        (event,) = events_of(plane, namespace, "StatusUnreadable")
        assert event["type"] == "Warning"
        assert "status.run.trigger: 'Scheduled'" in event["note"]
        assert "upgrade the operator" in event["note"]
        assert operator.metric("finetune_status_unreadable") == 1
        assert operator.metric("finetune_reconcile_seconds_count", outcome="fault") == 0
        assert status_of(plane, namespace, "travel")["run"]["trigger"] == "Scheduled"
        write("Created")
        wait_until(lambda: operator.metric("finetune_status_unreadable") == 0, PATIENCE, "a readable status")


def test_what_happens_again_is_told_again(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "recurring")
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "travel-r1", "namespace": namespace}}
    plane.kubectl.apply(foreign)
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        for times in (1, 2):
            wait_failure(plane, namespace, "NameConflict")
            plane.kubectl.wait_until(
                lambda times=times: len(events_of(plane, namespace, "NameConflict")) == times, PATIENCE, "an Event"
            )
            plane.kubectl("delete", "configmap", "travel-r1", namespace=namespace)
            plane.kubectl.wait_until(
                lambda: failure(plane, namespace).get("reason") is None, PATIENCE, "no failure any more", namespace
            )
            plane.kubectl("replace", "--force", "-f", "-", input=json.dumps(foreign), namespace=namespace)
            plane.kubectl("delete", "job", "travel-r1-prepare", namespace=namespace)
    notes = {each["note"] for each in events_of(plane, namespace, "NameConflict")}
    assert len(notes) == 1


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


@contextlib.contextmanager
def preparing(plane: ControlPlane, namespace: str, folder: Path) -> Iterator[OperatorProcess]:
    """An operator without patience, whose job is in its first stage."""
    variables = {
        "FINETUNE_WATCH_NAMESPACES": namespace,
        "FINETUNE_REQUEST_SECONDS": "1",
        "FINETUNE_RESYNC_SECONDS": "2",
    }
    with running_operator(plane, folder, **variables) as operator:
        plane.kubectl.apply(job_manifest("travel", namespace))
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 2, PATIENCE, "two children", namespace)
        yield operator


def next_stage_begins(plane: ControlPlane, namespace: str) -> None:
    """Once Prepare has ended well."""
    Kubelet(plane, namespace).end(f"{GROUP}/job=travel,{GROUP}/stage=Prepare", good_summary("Prepare", 1))
    plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 3, PATIENCE, "the next stage", namespace)


def test_a_control_plane_that_was_killed_is_waited_out(plane: ControlPlane, tmp_path: Path) -> None:
    """etcd first, then the API server with it; both come back with what etcd had written."""
    namespace = make_namespace(plane, "plane-killed")
    with preparing(plane, namespace, tmp_path) as operator:
        before = children(plane, namespace)
        for name in ("etcd", "kube-apiserver"):
            failed = operator.component.log.read_text().count("resync=failed")
            plane.kill(name)
            wait_until(
                lambda failed=failed: operator.component.log.read_text().count("resync=failed") > failed,
                PATIENCE, "a list that fails", operator.component.tail,
            )  # fmt: skip
        for name in ("etcd", "kube-apiserver"):
            plane.revive(name)
        plane.kubectl.wait_until(lambda: children(plane, namespace) == before, PATIENCE, "what was there", namespace)
        next_stage_begins(plane, namespace)


def test_an_api_server_that_hangs_is_waited_out(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "hanging")
    with preparing(plane, namespace, tmp_path) as operator:
        plane.pause_api_server()
        try:
            operator.wait_for_log("resync=failed")
        finally:
            plane.resume_api_server()
        next_stage_begins(plane, namespace)
        wait_until(lambda: operator.get("/healthz")[0] == 200, PATIENCE, "healthy")
