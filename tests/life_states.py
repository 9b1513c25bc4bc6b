"""Statuses of every state that a FineTuneJob can show, made by the decisions themselves on a simulated cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from finetune_api import API_VERSION, KIND
from finetune_api.conditions import FailureReason, Stage
from finetune_api.crd import job_schema
from finetune_api.job import FineTuneJob
from finetune_api.reports import StageFailure, Summary
from finetune_operator.control.reconcile import invalid_status
from finetune_operator.settings import Settings
from tests.simulator import START, Cluster, Manifest, good_summary, make_job, set_state, succeed

MANUAL = {"mode": "Manual"}
WRONG = {**MANUAL, "approved": {"run": 1, "digest": "cd" * 6}}
EXPORTS = {"claimName": "models", "exports": [{"name": "whole", "format": "Safetensors"}]}
NOWHERE = {"schedule": {"cron": "0 4 * * 1", "timeZone": "Mars/Olympus"}}


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
        "settling after an edit": _settling(),
        "waits in a queue": _end(Cluster(make_job(compute={"gpus": 0, "queueName": "team"}))),
        "judging": _until("Judging", evaluation={"judge": {"url": "https://judge.example.com/v1", "model": "judge"}}),
        "packaging": _until("Packaging", output=EXPORTS),
        "suspending": _suspended("Suspending"),
        "measured again, the old figures count": _measured_again(),
        "second run failed, the old model serves": _end(_second(_refused)),
        "approval of another model": _end(Cluster(make_job(promotion=WRONG))),
        "pinned to a run that is not there": _end(Cluster(make_job()).run().change(serving={"run": 7})),
        "taken back": _end(Cluster(make_job()).run().change(rerunToken="a").run().change(rerunToken=None)),
        "waits for another job's model": _end(Cluster(make_job(baseModel={"fineTuneJob": {"name": "other"}}))),
        "schedule that cannot be": _end(Cluster(make_job(triggers=NOWHERE))),
        "spec that this version refuses": _unreadable(),
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


def _until(reason: str, **spec: Any) -> dict[str, Any]:
    return snapshot(Cluster(make_job(**spec)).run(until=_shows(reason)))


def _shows(reason: str) -> Callable[[Cluster], bool]:
    return lambda cluster: cluster.condition("Ready")[1] == reason


def _settling() -> dict[str, Any]:
    cluster = Cluster(make_job(), Settings(settle_seconds=30)).run().change(rerunToken="again")
    return snapshot(cluster.run(until=_shows("Settling")))


def _suspended(reason: str = "Suspended") -> dict[str, Any]:
    cluster = Cluster(make_job()).run(until=lambda c: c.condition("Ready")[1] == "Training" and bool(c.pods))
    return snapshot(cluster.change(suspend=True).run(until=_shows(reason)))


def _measured_again() -> dict[str, Any]:
    cluster = Cluster(make_job()).run().change(evaluation={"baselines": ["Base", "FewShot"]})
    return snapshot(cluster.run(until=_shows("Evaluating")))


def _unreadable() -> dict[str, Any]:
    """Stored under the rules of another version."""
    body = snapshot(Cluster(make_job()).run())
    body["metadata"]["generation"] = 2
    body["spec"]["evaluation"] = {"maxExamples": 99_999_999}
    try:
        FineTuneJob.model_validate(body)
    except ValidationError as error:
        return {**body, "status": invalid_status(body, error, START)}
    raise AssertionError("it is refused by no rule")


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
