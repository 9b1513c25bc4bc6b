"""From `kubectl apply` to Ready on a real API server with its controllers; the kubelet alone is played.

The operator runs as its service account with the declared rights and nothing more.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import wait_until
from tests.operator_process import (
    GROUP,
    HOME,
    PATIENCE,
    Kubelet,
    children,
    condition,
    job_manifest,
    make_namespace,
    running_operator,
    start_operator,
    status_of,
    wait_idle,
)
from tests.simulator import good_summary

from finetune_operator.control import passes

CHILDREN = [
    ("ConfigMap", "travel-r1"),
    ("Deployment", "travel-serve"),
    ("Job", "travel-r1-evaluate"),
    ("Job", "travel-r1-prepare"),
    ("Job", "travel-r1-train"),
    ("Service", "travel-serve"),
]
STORY = [
    "RunStarted",
    "Unschedulable",
    "Resolved",
    "DatasetChecked",
    "TrainingStarted",
    "TrainingFinished",
    "Evaluated",
    "Promoted",
    "Serving",
]


def stage_selector(stage: str, job: str = "travel") -> str:
    return f"{GROUP}/job={job},{GROUP}/stage={stage}"


def finish_all_stages(kubelet: Kubelet) -> None:
    for stage in ("Prepare", "Train", "Evaluate"):
        kubelet.end(stage_selector(stage), good_summary(stage, 1))
    kubelet.run(stage_selector("Serve"))


def leave_unscheduled(plane: ControlPlane, namespace: str) -> None:
    """No node for the first pod, until the job's status says so; then the scheduler finds one. What it complains of is
    longer than an Event may be."""
    complaint = f"0/1 nodes are available: {'é' * 900}."
    name = Kubelet(plane, namespace).pod(stage_selector("Prepare"))["metadata"]["name"]

    def scheduled(status: str, reason: str) -> None:
        found = {"type": "PodScheduled", "status": status, "reason": reason, "message": complaint}
        patch = json.dumps({"status": {"conditions": [found]}})
        words = ("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)
        plane.kubectl(*words, namespace=namespace)

    def waits() -> bool:
        return condition(status_of(plane, namespace, "travel"), "Ready")[1] == "Unschedulable"

    scheduled("False", "Unschedulable")
    plane.kubectl.wait_until(waits, PATIENCE, "Unschedulable", namespace)
    scheduled("True", "")
    plane.kubectl.wait_until(lambda: not waits(), PATIENCE, "the end of the wait", namespace)


def wait_ready(plane: ControlPlane, namespace: str, name: str = "travel") -> None:
    plane.kubectl.wait_until(
        lambda: condition(status_of(plane, namespace, name), "Ready")[0] == "True", PATIENCE, "Ready", namespace
    )


def test_a_job_becomes_ready_and_then_nothing_is_written_or_read(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "lifecycle")
    variables = {"FINETUNE_WATCH_NAMESPACES": namespace, "FINETUNE_RESYNC_SECONDS": "3600"}
    with running_operator(plane, tmp_path, **variables) as operator:
        operator.wait_for_log("resync=done")
        plane.kubectl.apply(job_manifest("travel", namespace))
        finish_all_stages(Kubelet(plane, namespace))
        wait_ready(plane, namespace)
        wait_idle(operator)
        assert [each[:2] for each in children(plane, namespace)] == CHILDREN
        posts = operator.metric("finetune_api_requests_total", verb="POST", code="200")
        status_writes = operator.metric(
            "finetune_api_requests_total", verb="PUT", resource="finetunejobs/status", code="200"
        )
        events = operator.metric("finetune_api_requests_total", verb="POST", resource="events")
        assert posts - events == 6
        assert status_writes <= 8
        assert events <= 8
        before = (operator.writes(), operator.reads(), operator.passes())
        for number in range(5):
            plane.kubectl(
                "annotate", "--overwrite", "finetunejob", "travel", f"example.com/n={number}", namespace=namespace
            )
        wait_until(lambda: operator.passes() > before[2], PATIENCE, "a pass after the annotation")
        wait_idle(operator)
        assert (operator.writes(), operator.reads()) == before[:2]
        managed = plane.kubectl.json("get", "finetunejob", "travel", "--show-managed-fields", namespace=namespace)
        ours = [each for each in managed["metadata"]["managedFields"] if each["manager"] == "finetune-operator"]
        assert [each["subresource"] for each in ours] == ["status"], "no field of the spec is ever ours"
        again = ("apply", "--server-side", "--field-manager=argocd-controller", "-f", "-")
        plane.kubectl(*again, input=json.dumps(job_manifest("travel", namespace)))
        assert plane.kubectl.get("finetunejob", "travel", namespace)["metadata"]["generation"] == 1
        wait_idle(operator)
        assert (operator.writes(), operator.reads()) == before[:2]
        assert operator.get("/healthz") == (200, "ok\n")
        assert operator.metric("finetune_jobs", stage="Serve", ready="True") == 1
        assert operator.metric("finetune_runs_total", result="Promoted") == 1
    with running_operator(plane, tmp_path, name="restarted", **variables) as restarted:
        wait_until(lambda: restarted.passes() > 0, PATIENCE, "a pass after the restart")
        wait_idle(restarted)
        assert restarted.writes() == 0


def test_describe_tells_the_story_once_and_in_order_and_the_log_a_line_a_decision(
    plane: ControlPlane, tmp_path: Path
) -> None:
    namespace = make_namespace(plane, "events")
    variables = {"FINETUNE_WATCH_NAMESPACES": namespace, "FINETUNE_LOG_FORMAT": "json"}
    with running_operator(plane, tmp_path, **variables) as operator:
        plane.kubectl.apply(job_manifest("travel", namespace))
        leave_unscheduled(plane, namespace)
        finish_all_stages(Kubelet(plane, namespace))
        wait_ready(plane, namespace)
        wait_idle(operator)
        written = {
            verb: operator.metric("finetune_api_requests_total", verb=method, code="200")
            for method, verb in passes.DONE.items()
        }
    told = plane.kubectl("describe", "finetunejob", "travel", namespace=namespace).partition("\nEvents:")[2]
    assert [line.split()[1] for line in told.splitlines()[3:]] == STORY
    lines = [json.loads(line) for line in operator.component.log.read_text().splitlines()]
    ours = [line for line in lines if line.get("job") == f"{namespace}/travel"]
    assert {verb: sum(len(line[verb].split(",")) for line in ours if verb in line) for verb in written} == written
    stages = [line["stage"] for line in ours if "created" in line]
    assert stages == ["Prepare", "Prepare", "Prepare", "Train", "Evaluate", "Serve", "Serve"]
    assert all(line["run"] == "1" and line["outcome"] for line in ours)


def test_deleting_the_job_deletes_its_children_and_an_operator_has_no_say(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "deletion")
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 2, PATIENCE, "two children", namespace)
    plane.kubectl("delete", "finetunejob", "travel", "--timeout=20s", namespace=namespace)
    plane.kubectl.wait_until(lambda: not children(plane, namespace), PATIENCE, "no children", namespace)


def test_sigterm_ends_in_order_and_releases_the_lease(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "sigterm")
    operator = start_operator(
        plane,
        tmp_path,
        FINETUNE_WATCH_NAMESPACES=namespace,
        FINETUNE_LEASE_NAMESPACE=HOME,
    )
    try:
        operator.wait_for_log("resync=done")
        assert operator.stop() == 0
    finally:
        operator.kill()
    lease = plane.kubectl.get("lease", "finetune-operator", namespace=HOME)
    assert lease is not None
    assert not lease["spec"].get("holderIdentity")


def test_only_the_named_namespaces_are_served(plane: ControlPlane, tmp_path: Path) -> None:
    served, other = make_namespace(plane, "served"), make_namespace(plane, "not-served")
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=served):
        plane.kubectl.apply(job_manifest("travel", other), job_manifest("travel", served))
        plane.kubectl.wait_until(lambda: children(plane, served), PATIENCE, "children", served)
        assert status_of(plane, other, "travel")["conditions"] == []  # as the CRD's defaults have it
        assert not children(plane, other)
