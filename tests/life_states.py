"""Statuses of every state that a FineTuneJob can show, made by the decisions themselves on a simulated cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_api import API_VERSION, KIND
from finetune_api.conditions import FailureReason, Stage
from finetune_api.crd import job_schema
from finetune_api.job import FineTuneJob
from finetune_api.reports import StageFailure, Summary
from tests.simulator import Cluster, Manifest, good_summary, make_job, set_state, succeed

MANUAL = {"mode": "Manual"}


def states() -> dict[str, dict[str, Any]]:
    """Whole objects as the API server has them, by what they show."""
    life = _as_it_lives(Cluster(make_job()))
    return {
        "just applied": _object(make_job(), job_schema()["properties"]["status"]["default"]),
        "spec changed, not seen yet": _object(make_job(generation=2), life["Ready"]["status"]),
        "preparing": life["Preparing"],
        "training": life["Training"],
        "evaluating": life["Evaluating"],
        "rolling out": life["RollingOut"],
        "serving": life["Ready"],
        "trained, not served": _end(Cluster(make_job(serving={"replicas": 0}))),
        "gate failed, no model": _end(Cluster(make_job(), answer=_worse)),
        "gate failed, the old model serves": _second_run_is_worse(),
        "second run trains, the old model serves": _second_run_trains(),
        "waits for approval, no model": _end(Cluster(make_job(promotion=MANUAL))),
        "waits for approval, the old model serves": _second_run_waits_for_approval(),
        "second run is rolled back, the old model serves": _second_run_is_rolled_back(),
        "suspended": _suspended(),
        "budget used up": _out_of_budget(),
        "data refused": _end(Cluster(make_job(), answer=_refused)),
        "pod waits for a node": _waiting(),
    }


def _object(job: FineTuneJob, status: dict[str, Any]) -> dict[str, Any]:
    meta = {"name": job.metadata.name, "namespace": job.metadata.namespace, "generation": job.metadata.generation}
    wire: dict[str, Any] = {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "spec": job.spec.to_wire()}
    return {**wire, "status": status}


def snapshot(cluster: Cluster) -> dict[str, Any]:
    return _object(cluster.job, cluster.job.status.to_wire())


def _as_it_lives(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """One object for each reason that Ready shows on the way; the end under `Ready`."""
    seen: dict[str, dict[str, Any]] = {}

    def look(now: Cluster) -> bool:
        seen[now.condition("Ready")[1]] = snapshot(now)
        return False

    cluster.run(until=look)
    return {**seen, "Ready": snapshot(cluster)}


def _end(cluster: Cluster) -> dict[str, Any]:
    return snapshot(cluster.run())


def _second_run_waits_for_approval() -> dict[str, Any]:
    return _end(Cluster(make_job()).run().change(rerunToken="again", promotion=MANUAL))


def _second_run_is_rolled_back() -> dict[str, Any]:
    cluster = _second(succeed).run(until=lambda cluster: cluster.condition("Ready")[1] == "RollingOut")
    failure = StageFailure(reason=FailureReason.SMOKE_FAILED, message="Smoke test: the answer is empty.")
    words = Summary(stage=Stage.SERVE, ok=False, failure=failure).to_message()
    deployment = cluster.objects["Deployment", "travel-serve"]
    seen = {"observedGeneration": deployment["metadata"]["generation"], "replicas": 2, "updatedReplicas": 1}
    deployment["status"] = {**deployment["status"], **seen, "unavailableReplicas": 1}
    pod = cluster.start_pod(deployment)
    set_state(pod, "Running", {"terminated": {"exitCode": 13, "message": words}})
    cluster.execute(cluster.plan())
    cluster.pods.remove(pod)
    return _end(cluster)


def _suspended() -> dict[str, Any]:
    cluster = Cluster(make_job()).run(until=lambda cluster: cluster.condition("Ready")[1] == "Training")
    return _end(cluster.change(suspend=True))


def _out_of_budget() -> dict[str, Any]:
    return _end(Cluster(make_job(compute={"gpus": 1}, budget={"maxGpuHours": "0.000001"})))


def _worse(pod: Manifest) -> tuple[int, str]:
    labels = pod["metadata"]["labels"]
    stage, run = labels["finetune-operator.io/stage"], int(labels["finetune-operator.io/run"])
    return 0, good_summary(stage, run, tuned=3.0)


def _refused(pod: Manifest) -> tuple[int, str]:
    failure = StageFailure(reason=FailureReason.DATASET_INVALID, message="train: line 4 is broken")
    return 10, Summary(stage=Stage.PREPARE, ok=False, run=1, failure=failure).to_message()


def _second(answer: Callable[[Manifest], tuple[int, str]]) -> Cluster:
    cluster = Cluster(make_job()).run()
    cluster.answer = answer
    return cluster.change(rerunToken="again")


def _second_run_is_worse() -> dict[str, Any]:
    return _end(_second(_worse))


def _second_run_trains() -> dict[str, Any]:
    return snapshot(_second(succeed).run(until=lambda cluster: cluster.condition("Ready")[1] == "Training"))


def _waiting() -> dict[str, Any]:
    cluster = Cluster(make_job()).run(until=lambda c: bool(c.pods))
    cluster.pods[-1]["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    ]
    cluster.execute(cluster.plan())
    return snapshot(cluster)
