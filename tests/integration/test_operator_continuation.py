"""Two jobs applied at once on a real API server: the second begins by itself when the first is promoted."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.integration.test_operator_lifecycle import stage_selector, wait_ready
from tests.operator_process import (
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

STAGES = ("Prepare", "Train", "Evaluate")


def test_the_second_job_begins_when_the_first_is_promoted(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "continuation")
    kubelet = Kubelet(plane, namespace)
    # No list within the test: only the first job's own status can wake the second.
    with running_operator(
        plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace, FINETUNE_RESYNC_SECONDS="3600"
    ) as operator:
        operator.wait_for_log("resync=done")
        polite = job_manifest("polite", namespace)
        polite["spec"]["baseModel"] = {"fineTuneJob": {"name": "chat"}}
        polite["spec"]["serving"] = {"replicas": 0}
        chat = job_manifest("chat", namespace)
        chat["spec"]["serving"] = {"replicas": 0}
        plane.kubectl.apply(polite)
        plane.kubectl.wait_until(
            lambda: condition(status_of(plane, namespace, "polite"), "Reconciling")[1] == "BaseNotPromoted",
            PATIENCE, "waits", namespace,
        )  # fmt: skip
        plane.kubectl.apply(chat)
        for stage in STAGES:
            assert not [name for _, name, *_ in children(plane, namespace) if name.startswith("polite")]
            kubelet.end(stage_selector(stage, "chat"), good_summary(stage, 1))
        for stage in STAGES:
            kubelet.end(stage_selector(stage, "polite"), good_summary(stage, 1))
        wait_ready(plane, namespace, "polite")
        status = status_of(plane, namespace, "polite")
        assert status["run"]["continuedFrom"]["mode"] == "Continue"
        assert [(each["job"], each["run"]) for each in status["model"]["lineage"]] == [("chat", 1)]
