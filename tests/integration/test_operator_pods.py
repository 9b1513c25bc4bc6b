"""Pods that must not be there yet, and pods that may not come to be, on a real API server with its controllers."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.operator_process import (
    GROUP,
    PATIENCE,
    Kubelet,
    children,
    condition,
    job_manifest,
    make_namespace,
    running_operator,
    status_of,
)
from tests.simulator import good_summary
from tests.single_life import look

from finetune_operator.diagnose.verdict import GAVE_UP
from finetune_operator.settings import Settings

STAGE, INDEX = f"{GROUP}/stage", "batch.kubernetes.io/job-completion-index"
HOLD = "example.com/hold"


def failure(plane: ControlPlane, namespace: str) -> dict[str, str]:
    return status_of(plane, namespace, "travel").get("run", {}).get("failure", {})


def wait_failure(plane: ControlPlane, namespace: str, reason: str) -> dict[str, str]:
    plane.kubectl.wait_until(
        lambda: failure(plane, namespace).get("reason") == reason, PATIENCE, f"failure {reason}", namespace
    )
    return failure(plane, namespace)


def wait_no_failure(plane: ControlPlane, namespace: str) -> None:
    plane.kubectl.wait_until(lambda: not failure(plane, namespace), PATIENCE, "no failure", namespace)


def kinds(plane: ControlPlane, namespace: str) -> list[str]:
    return [each[0] for each in children(plane, namespace)]


def test_a_quota_that_takes_jobs_but_no_pods_is_named_while_it_lasts(plane: ControlPlane, tmp_path: Path) -> None:
    """Only the Job controller is refused, and says so in an Event of the Job alone."""
    namespace = make_namespace(plane, "no-pods")
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-pods", "namespace": namespace},
        "spec": {"hard": {"pods": "0"}},
    }
    plane.kubectl.apply(quota)
    plane.kubectl.wait_until(
        lambda: (plane.kubectl.get("resourcequota", "no-pods", namespace) or {}).get("status", {}).get("hard"),
        PATIENCE,
        "the quota in force",
    )
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace) as operator:
        plane.kubectl.apply(job_manifest("travel", namespace))
        found = wait_failure(plane, namespace, "QuotaExceeded")
        assert "exceeded quota: no-pods, requested: pods=1, limited: pods=0" in found["message"]
        assert found["waiting"]
        assert found["advice"]
        assert condition(status_of(plane, namespace, "travel"), "Reconciling")[0] == "True"
        plane.kubectl("delete", "resourcequota", "no-pods", namespace=namespace)
        Kubelet(plane, namespace).run(f"{GROUP}/job=travel,{GROUP}/stage=Prepare")
        wait_no_failure(plane, namespace)
        assert operator.metric("finetune_reconcile_seconds_count", outcome="fault") == 0


def test_what_was_refused_before_the_operator_started_is_found(plane: ControlPlane, tmp_path: Path) -> None:
    """And a LimitRange is told apart from a quota."""
    namespace = make_namespace(plane, "strict")
    policy = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "small", "namespace": namespace},
        "spec": {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]},
    }
    plane.kubectl.apply(policy)
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        found = wait_failure(plane, namespace, "PodRefused")
        assert "memory" in found["message"]
        assert "LimitRange" in found["advice"]
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace) as operator:
        operator.wait_for_log("resync=done")
        plane.kubectl.apply(job_manifest("travel", namespace, serving={"replicas": 0}))
        plane.kubectl.wait_until(
            lambda: status_of(plane, namespace, "travel")["observedGeneration"] == 2, PATIENCE, "a pass", namespace
        )
        assert failure(plane, namespace)["reason"] == "PodRefused"


def test_a_priority_class_that_is_missing_is_named_until_it_is_there(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "priorities")
    wanted = {"gpus": 0, "priorityClassName": "batch"}
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace, compute=wanted))
        found = wait_failure(plane, namespace, "SpecInvalid")
        assert "no PriorityClass with name batch was found" in found["message"]
        assert found["waiting"]
        made = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "batch"}}
        plane.kubectl.apply({**made, "value": 100})
        try:
            Kubelet(plane, namespace).run(f"{GROUP}/job=travel,{GROUP}/stage=Prepare")
            wait_no_failure(plane, namespace)
        finally:
            plane.kubectl("delete", "priorityclass", "batch")


def test_a_trainer_whose_job_was_taken_away_from_over_it_is_waited_for(plane: ControlPlane, tmp_path: Path) -> None:
    """`kubectl delete job --cascade=orphan`: two of them must not write to one folder."""
    namespace = make_namespace(plane, "orphaned")
    stage = f"{GROUP}/job=travel,{GROUP}/stage=Prepare"
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        pod = Kubelet(plane, namespace).run(stage)["metadata"]["name"]
        plane.kubectl("delete", "job", "travel-r1-prepare", "--cascade=orphan", namespace=namespace)
        found = wait_failure(plane, namespace, "FormerPod")
        assert pod in found["message"]
        assert "kubectl delete pod" in found["advice"]
        assert kinds(plane, namespace) == ["ConfigMap"]
        plane.kubectl("delete", "pod", pod, "--now", namespace=namespace)
        plane.kubectl.wait_until(lambda: kinds(plane, namespace) == ["ConfigMap", "Job"], PATIENCE, "Job", namespace)
        wait_no_failure(plane, namespace)


def test_a_job_applied_again_waits_for_the_trainer_of_the_former_one(plane: ControlPlane, tmp_path: Path) -> None:
    """The pod saves its checkpoint for two minutes after the job was deleted; a finalizer stands for that here."""
    namespace = make_namespace(plane, "again")
    stage = f"{GROUP}/job=travel,{GROUP}/stage=Prepare"
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        pod = Kubelet(plane, namespace).run(stage)["metadata"]["name"]
        plane.kubectl(
            *("patch", "pod", pod, "--type=json"),
            *("-p", f'[{{"op":"add","path":"/metadata/finalizers/-","value":"{HOLD}"}}]'),
            namespace=namespace,
        )
        plane.kubectl("delete", "finetunejob", "travel", namespace=namespace)
        plane.kubectl.wait_until(lambda: not kinds(plane, namespace), PATIENCE, "no children", namespace)
        assert plane.kubectl.get("pod", pod, namespace)
        plane.kubectl.apply(job_manifest("travel", namespace))
        found = wait_failure(plane, namespace, "FormerPod")
        assert pod in found["message"]
        assert pod in status_of(plane, namespace, "travel")["conditions"][0]["message"]
        assert kinds(plane, namespace) == []
        plane.kubectl(
            "patch", "pod", pod, "--type=merge", "-p", '{"metadata":{"finalizers":null}}', namespace=namespace
        )
        plane.kubectl.wait_until(lambda: kinds(plane, namespace) == ["ConfigMap", "Job"], PATIENCE, "Job", namespace)
        wait_no_failure(plane, namespace)


def test_a_gang_that_falls_is_made_anew_as_soon_as_one_pod_is(plane: ControlPlane) -> None:
    """The Job controller would let 80 seconds pass, more than this test waits, if each of the four counted for all."""
    namespace, kubelet = make_namespace(plane, "gang"), Kubelet(plane, "gang")
    plane.kubectl.apply(job_manifest("travel", namespace, compute={"gpus": 0, "nodes": 4}))

    def members() -> set[str]:
        items = plane.kubectl.json("get", "pods", "-l", f"{STAGE}=Train", namespace=namespace)["items"]
        return {pod["metadata"]["name"] for pod in items if pod["status"].get("phase", "Pending") == "Pending"}

    settings = Settings(backoff_limit=1)
    look(plane, namespace, settings=settings)
    kubelet.end(f"{STAGE}=Prepare", good_summary("Prepare", 1))
    prepared = ("wait", "job/travel-r1-prepare", "--for=condition=Complete", "--timeout=60s")
    plane.kubectl(*prepared, namespace=namespace)
    look(plane, namespace, settings=settings)
    plane.kubectl.wait_until(lambda: len(members()) == 4, PATIENCE, "four pods", namespace)
    for index in range(4):
        kubelet.end(f"{STAGE}=Train,{INDEX}={index}", "", exit_code=1)
    plane.kubectl.wait_until(lambda: len(members()) == 4, PATIENCE, "four other pods", namespace)
    kubelet.end(f"{STAGE}=Train,{INDEX}=2", "", exit_code=1)
    failed = ("wait", "job/travel-r1-train", "--for=condition=Failed", "--timeout=60s")
    plane.kubectl(*failed, namespace=namespace)
    assert not members(), "the others are ended with it"
    job = plane.kubectl.json("get", "job", "travel-r1-train", namespace=namespace)
    [end] = [each for each in job["status"]["conditions"] if each["type"] == "Failed"]
    assert end["reason"] in GAVE_UP
