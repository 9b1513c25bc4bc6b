"""Other evaluation settings on a real API server, with the real Job controller and garbage collector."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.operator_process import (
    GROUP,
    PATIENCE,
    Kubelet,
    condition,
    job_manifest,
    make_namespace,
    running_operator,
    status_of,
)
from tests.simulator import good_summary


def uid(plane: ControlPlane, namespace: str, stage: str) -> str:
    job = plane.kubectl.get("job", f"travel-r1-{stage}", namespace=namespace)
    return str(job["metadata"]["uid"]) if job else ""


def end(plane: ControlPlane, namespace: str, stage: str, *, tuned: float) -> None:
    selector = f"{GROUP}/job=travel,{GROUP}/stage={stage}"
    Kubelet(plane, namespace).end(selector, good_summary(stage, 1, tuned=tuned))


def test_a_finished_run_is_measured_again_and_served_meanwhile(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "evaluation")

    def waits_for(kind: str, status: str, reason: str) -> None:
        plane.kubectl.wait_until(
            lambda: condition(status_of(plane, namespace, "travel"), kind) == (status, reason),
            PATIENCE,
            f"{kind}={status}, {reason}",
            namespace,
        )

    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        for stage in ("Prepare", "Train", "Evaluate"):
            end(plane, namespace, stage, tuned=1.0)
        Kubelet(plane, namespace).run(f"{GROUP}/job=travel,{GROUP}/stage=Serve")
        waits_for("Ready", "True", "Serving")
        first, trained = uid(plane, namespace, "evaluate"), uid(plane, namespace, "train")

        patch = json.dumps({"spec": {"evaluation": {"maxExamples": 900}}})
        plane.kubectl("patch", "finetunejob", "travel", "--type=merge", "-p", patch, namespace=namespace)
        waits_for("Evaluated", "Unknown", "MeasuredAgain")
        assert condition(status_of(plane, namespace, "travel"), "Serving") == ("True", "Available")
        plane.kubectl.wait_until(
            lambda: uid(plane, namespace, "evaluate") not in ("", first), PATIENCE, "another Evaluate Job", namespace
        )
        end(plane, namespace, "Evaluate", tuned=1.5)
        waits_for("Ready", "True", "Serving")
        status = status_of(plane, namespace, "travel")
        assert status["run"]["evaluation"]["tuned"]["loss"] == 1.5
        assert status["run"]["number"] == 1
        assert uid(plane, namespace, "train") == trained


def test_an_export_that_is_added_packages_what_is_served(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "exports")
    exports = [{"name": "whole", "to": "s3://models/travel", "secretRef": {"name": "keys"}}]

    def waits_for(kind: str, status: str, reason: str) -> None:
        plane.kubectl.wait_until(
            lambda: condition(status_of(plane, namespace, "travel"), kind) == (status, reason),
            PATIENCE,
            f"{kind}={status}, {reason}",
            namespace,
        )

    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=namespace):
        plane.kubectl.apply(job_manifest("travel", namespace))
        for stage in ("Prepare", "Train", "Evaluate"):
            end(plane, namespace, stage, tuned=1.0)
        Kubelet(plane, namespace).run(f"{GROUP}/job=travel,{GROUP}/stage=Serve")
        waits_for("Ready", "True", "Serving")
        trained = uid(plane, namespace, "train")
        patch = json.dumps({"spec": {"output": {"exports": exports}}})
        plane.kubectl("patch", "finetunejob", "travel", "--type=merge", "-p", patch, namespace=namespace)
        waits_for("Packaged", "Unknown", "Pending")
        end(plane, namespace, "Package", tuned=1.0)
        waits_for("Packaged", "True", "Exported")
        waits_for("Ready", "True", "Serving")
        assert uid(plane, namespace, "train") == trained
        (export,) = status_of(plane, namespace, "travel")["run"]["package"]["exports"]
        assert export["uri"].startswith("s3://models/travel/whole-r1-")
        patch = json.dumps({"spec": {"output": {"exports": None}}})
        plane.kubectl("patch", "finetunejob", "travel", "--type=merge", "-p", patch, namespace=namespace)
        plane.kubectl.wait_until(
            lambda: (
                "package" not in status_of(plane, namespace, "travel")["run"] and not uid(plane, namespace, "package")
            ),
            PATIENCE,
            "nothing is said of exports any more",
            namespace,
        )
