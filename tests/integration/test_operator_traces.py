"""Traces of runs and passes: from a real operator, over the real protocol, into a collector that decodes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import wait_until
from tests.operator_process import (
    PATIENCE,
    Kubelet,
    condition,
    job_manifest,
    make_namespace,
    running_operator,
    start_operator,
    status_of,
    wait_idle,
)
from tests.otlp_receiver import receiving
from tests.simulator import good_summary

from finetune_operator.control.spans import run_ids

PASSWORD = "not-for-the-log"
STAGES = ["Prepare", "Train", "Evaluate", "Serve"]


def end(kubelet: Kubelet, *stages: str) -> None:
    for stage in stages:
        kubelet.end(f"finetune-operator.io/job=travel,finetune-operator.io/stage={stage}", good_summary(stage, 1))


def wait_ready(plane: ControlPlane, namespace: str) -> None:
    Kubelet(plane, namespace).run("finetune-operator.io/job=travel,finetune-operator.io/stage=Serve")
    plane.kubectl.wait_until(
        lambda: condition(status_of(plane, namespace, "travel"), "Ready")[0] == "True", PATIENCE, "Ready", namespace
    )


def test_a_run_is_one_trace_whatever_replica_told_it(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "traced")
    with receiving() as collector:
        variables = {
            "FINETUNE_WATCH_NAMESPACES": namespace,
            "FINETUNE_TRACES_ENDPOINT": collector.url,
            "FINETUNE_TRACES_HEADERS": f"Authorization=Bearer%20{PASSWORD}",
            "FINETUNE_LOG_LEVEL": "DEBUG",
            "POD_NAME": "operator-a",
        }
        first = start_operator(plane, tmp_path, **variables)
        try:
            plane.kubectl.apply(job_manifest("travel", namespace))
            end(Kubelet(plane, namespace), "Prepare", "Train")
            plane.kubectl.wait_until(
                lambda: condition(status_of(plane, namespace, "travel"), "Trained")[0] == "True", PATIENCE, "Trained"
            )
            assert first.stop() == 0  # what waits is sent before the process ends
        finally:
            first.kill()
        assert sorted(collector.of_run()) == ["Prepare", "Train"]
        with running_operator(plane, tmp_path, name="second", **{**variables, "POD_NAME": "operator-b"}) as second:
            end(Kubelet(plane, namespace), "Evaluate")
            wait_ready(plane, namespace)
            wait_until(lambda: len(collector.of_run()) == 5, PATIENCE, "all spans", second.component.tail)
            wait_idle(second)
            logs = first.component.log.read_text() + second.component.log.read_text()
        spans = collector.of_run()
        job = plane.kubectl.get("finetunejob", "travel", namespace=namespace)
        assert job
        trace, root = run_ids(job["metadata"]["uid"], 1)
        assert {each.trace for each in spans.values()} == {f"{trace:032x}"}
        assert spans["run 1"].span == f"{root:016x}"
        assert not spans["run 1"].parent
        assert {spans[stage].parent for stage in STAGES} == {spans["run 1"].span}
        starts = [spans[stage].start for stage in STAGES]
        assert starts == sorted(starts)
        assert all(each.start <= each.end and not each.error for each in spans.values())
        assert spans["run 1"].attributes["finetune.result"] == "Promoted"
        assert spans["Prepare"].attributes["finetune.train_examples"] == 180
        assert {each.service["service.instance.id"] for each in spans.values()} == {"operator-a", "operator-b"}
        assert len(collector.spans) == len({(each.trace, each.span) for each in collector.spans})
        passes = [each for each in collector.spans if each.name == "reconcile"]
        assert {tuple(each.links) for each in passes} == {(f"{trace:032x}",)}
        assert passes[0].attributes["finetune.job"] == "travel"
        assert passes[0].attributes["finetune.created"] == [
            "configmaps/travel-r1",
            "jobs/travel-r1-prepare",
            "events/RunStarted",
        ]
        assert all(each["authorization"] == f"Bearer {PASSWORD}" for each in collector.headers)
        assert collector.paths == {"/v1/traces"}
        assert PASSWORD not in logs + json.dumps([each.attributes for each in collector.spans])


@pytest.mark.parametrize("answer", [None, 503], ids=["hangs", "refuses"])
def test_a_collector_that_does_not_work_is_nobodys_concern(
    plane: ControlPlane, tmp_path: Path, answer: int | None
) -> None:
    namespace = make_namespace(plane, f"untraced-{answer or 'hangs'}")
    with receiving() as collector:
        collector.answer = answer
        variables = {"FINETUNE_WATCH_NAMESPACES": namespace, "FINETUNE_TRACES_ENDPOINT": collector.url}
        with running_operator(plane, tmp_path, **variables) as operator:
            plane.kubectl.apply(job_manifest("travel", namespace))
            wait_until(lambda: collector.requests > 0, PATIENCE, "the first spans to be sent", operator.component.tail)
            end(Kubelet(plane, namespace), "Prepare", "Train", "Evaluate")
            wait_ready(plane, namespace)
            assert not collector.spans
            assert operator.metric("finetune_reconcile_seconds_count", outcome="fault") == 0
            assert operator.stop() == 0  # within 30 s, though nobody takes what is left


def test_traces_are_off_unless_asked_for(plane: ControlPlane, tmp_path: Path) -> None:
    with running_operator(plane, tmp_path, FINETUNE_WATCH_NAMESPACES=make_namespace(plane, "not-traced")) as operator:
        metrics = operator.get("/metrics")[1]
        assert operator.component.process
        maps = Path(f"/proc/{operator.component.process.pid}/maps").read_text()
    assert "finetune_trace_spans_total{" not in metrics
    assert "google/_upb" not in maps  # OpenTelemetry's protobuf is not even loaded
    assert 'finetune_reconcile_seconds_count{outcome="fault"} 0.0' in metrics  # the alert needs the series from 0 on
