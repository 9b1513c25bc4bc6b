"""Removal and rollback on a real API server with its controllers; the kubelet alone is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cluster.control_plane import ControlPlane
from tests.integration.test_operator_lifecycle import finish_all_stages, stage_selector, wait_ready
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

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import StageFailure, Summary


def files_of(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    records = status_of(plane, namespace, "travel").get("runs") or [{}]
    return dict(records[0].get("files") or {})


def test_checkpoints_are_removed_by_a_job_that_goes_when_it_is_done(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "retention")
    variables = {"FINETUNE_WATCH_NAMESPACES": namespace, "FINETUNE_RESYNC_SECONDS": "3600"}
    with running_operator(plane, tmp_path, **variables) as operator:
        operator.wait_for_log("resync=done")
        kubelet = Kubelet(plane, namespace)
        job = job_manifest("travel", namespace)
        job["spec"]["output"]["retention"] = {"keepRuns": 2}
        plane.kubectl.apply(job)
        finish_all_stages(kubelet)
        kubelet.end(stage_selector("Remove"), '{"ok": true, "removed": 1}')
        plane.kubectl.wait_until(
            lambda: files_of(plane, namespace).get("checkpoints") == "Removed", PATIENCE, "the removal", namespace
        )
        wait_ready(plane, namespace)
        wait_idle(operator)
        assert files_of(plane, namespace)["state"] == "Kept"
        assert plane.kubectl.get("job", "travel-remove", namespace) is None
        assert condition(status_of(plane, namespace, "travel"), "Ready")[0] == "True"


def test_a_run_whose_answer_will_not_do_is_rolled_back_to_servers_that_never_stopped(
    plane: ControlPlane, tmp_path: Path
) -> None:
    namespace = make_namespace(plane, "rollback")
    variables = {"FINETUNE_WATCH_NAMESPACES": namespace, "FINETUNE_RESYNC_SECONDS": "3600"}
    failure = StageFailure(reason=FailureReason.SMOKE_FAILED, message="Smoke test: the answer is empty.")
    words = Summary(stage=Stage.SERVE, ok=False, failure=failure).to_message()
    with running_operator(plane, tmp_path, **variables) as operator:
        operator.wait_for_log("resync=done")
        kubelet = Kubelet(plane, namespace)
        job = job_manifest("travel", namespace)
        plane.kubectl.apply(job)
        finish_all_stages(kubelet)
        wait_ready(plane, namespace)
        [server] = servers(plane, namespace)
        job["spec"]["rerunToken"] = "b"
        plane.kubectl.apply(job)
        for stage in ("Prepare", "Train", "Evaluate"):
            kubelet.end(f"{stage_selector(stage)},{GROUP}/run=2", good_summary(stage, 2))
        kubelet.falls(f"{stage_selector('Serve')},{GROUP}/run=2", words)

        def is_back() -> bool:
            records = status_of(plane, namespace, "travel").get("runs") or []
            return [record["result"] for record in records] == ["Promoted", "RolledBack"]

        plane.kubectl.wait_until(is_back, PATIENCE, "the rollback", namespace)
        plane.kubectl.wait_until(
            lambda: [each["metadata"]["uid"] for each in servers(plane, namespace)] == [server["metadata"]["uid"]],
            PATIENCE,
            "the servers of run 2 to go",
            namespace,
        )
        wait_idle(operator)
        status = status_of(plane, namespace, "travel")
        assert condition(status, "Stalled") == ("True", "SmokeFailed")
        assert condition(status, "Promoted") == ("False", "RolledBack")
        assert condition(status, "Serving") == ("True", "Available")
        assert status["endpoint"]["run"] == 1


def servers(plane: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    return list(plane.kubectl.json("get", "pods", "-l", stage_selector("Serve"), namespace=namespace)["items"])
