"""The endpoint: replicas, trouble, and what happens to it beside the runs."""

from __future__ import annotations

import copy
from typing import Any

from tests.simulator import Cluster, good_summary, make_job, stamp

from finetune_api.conditions import FailureReason as Reason
from finetune_api.conditions import Stage
from finetune_api.status import Failure


def rolling() -> Cluster:
    """A cluster whose first server is about to start."""
    return Cluster(make_job()).run(until=lambda c: ("Deployment", "travel-serve") in c.objects)


def server_pod(cluster: Cluster, status: dict[str, Any], run: int = 1) -> None:
    deployment = cluster.objects["Deployment", "travel-serve"]
    labels = {**deployment["spec"]["template"]["metadata"]["labels"], "finetune-operator.io/run": str(run)}
    owner = {"uid": deployment["metadata"]["uid"], "controller": True}
    meta = {"name": f"travel-serve-{len(cluster.pods)}", "labels": labels, "creationTimestamp": stamp(cluster.now)}
    cluster.pods.append({"metadata": {**meta, "ownerReferences": [owner]}, "spec": {}, "status": status})


def trouble(cluster: Cluster) -> Failure:
    run = cluster.plan().status.run
    assert run is not None
    assert run.failure is not None
    assert run.failure.stage is Stage.SERVE
    assert run.failure.waiting
    return run.failure


def crashed(code: int, reason: str, message: str) -> dict[str, Any]:
    last = {"exitCode": code, "reason": reason, "message": message}
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
    status = {"name": "main", "state": state, "lastState": {"terminated": last}}
    return {"phase": "Running", "containerStatuses": [status]}


def test_without_replicas_the_model_is_kept_and_ready() -> None:
    cluster = Cluster(make_job(serving={"replicas": 0})).run()
    assert cluster.condition("Ready") == ("True", "Trained")
    assert cluster.condition("Serving") == ("False", "NoReplicas")
    assert cluster.job.status.endpoint is None
    assert cluster.job.status.model is not None
    assert "Deployment/travel-serve" not in cluster.created


def test_taking_the_replicas_away_removes_the_endpoint_and_back_again() -> None:
    cluster = Cluster(make_job()).run().change(serving={"replicas": 0}).run()
    assert {kind for kind, _ in cluster.objects} == {"ConfigMap", "Job"}
    assert cluster.condition("Ready") == ("True", "Trained")
    cluster.change(serving={"replicas": 2}).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.ready_replicas == 2


def test_a_server_that_falls_over_shows_its_last_words() -> None:
    cluster = rolling()
    server_pod(cluster, crashed(1, "Error", "ValueError: no adapter_config.json"))
    failure = trouble(cluster)
    assert failure.reason is Reason.NOT_READY
    assert "no adapter_config.json" in failure.message
    cluster.pods = [pod for pod in cluster.pods if "serve" not in pod["metadata"]["name"]]
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.failure is None


def test_a_server_without_enough_memory_says_so() -> None:
    cluster = rolling()
    server_pod(cluster, crashed(137, "OOMKilled", ""))
    failure = trouble(cluster)
    assert failure.reason is Reason.OUT_OF_MEMORY
    assert "serving.resources" in failure.advice


def test_a_server_that_no_node_takes_shows_while_the_old_one_answers() -> None:
    cluster = Cluster(make_job()).run().change(rerunToken="b")
    cluster.run(until=lambda c: c.condition("Ready")[1] == "RollingOut")
    text = "0/1 nodes are available: 1 Insufficient cpu."
    entry = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}
    server_pod(cluster, {"phase": "Pending", "conditions": [entry]}, run=2)
    assert trouble(cluster).reason is Reason.UNSCHEDULABLE
    cluster.execute(cluster.plan())
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.run == 1
    assert cluster.condition("Serving") == ("True", "Available")


def test_a_rollout_that_makes_no_progress_is_named() -> None:
    cluster = rolling()
    text = 'ReplicaSet "travel-serve-1" has timed out progressing.'
    entry = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": text}
    cluster.objects["Deployment", "travel-serve"]["status"] = {"observedGeneration": 1, "conditions": [entry]}
    assert trouble(cluster).reason is Reason.NOT_READY


def test_a_quota_that_keeps_servers_away_is_named() -> None:
    cluster = rolling()
    text = 'pods "x" is forbidden: exceeded quota: compute'
    entry = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": text}
    cluster.objects["Deployment", "travel-serve"]["status"] = {"conditions": [entry]}
    assert trouble(cluster).reason is Reason.QUOTA_EXCEEDED


def test_a_status_of_an_older_generation_is_not_believed() -> None:
    cluster = Cluster(make_job()).run()
    cluster.objects["Deployment", "travel-serve"]["metadata"]["generation"] += 1
    cluster.execute(cluster.plan())
    assert cluster.condition("Ready") == ("False", "RollingOut")


def test_a_new_server_that_is_not_available_yet_is_not_the_end_of_a_rollout() -> None:
    cluster = Cluster(make_job(serving={"replicas": 2})).run()
    surge = {"observedGeneration": 1, "updatedReplicas": 2, "availableReplicas": 2, "unavailableReplicas": 1}
    cluster.objects["Deployment", "travel-serve"]["status"] = surge
    assert next(c.status for c in cluster.plan().status.conditions if c.type == "Ready") == "False"
    del cluster.objects["Deployment", "travel-serve"]["status"]["unavailableReplicas"]
    assert next(c.status for c in cluster.plan().status.conditions if c.type == "Ready") == "True"


def test_servers_that_are_lost_make_it_not_ready_until_they_are_back() -> None:
    cluster = Cluster(make_job()).run()
    healthy = copy.deepcopy(cluster.objects["Deployment", "travel-serve"]["status"])
    broken = {**healthy, "availableReplicas": 0, "readyReplicas": 0, "unavailableReplicas": 1}
    cluster.objects["Deployment", "travel-serve"]["status"] = broken
    cluster.execute(cluster.plan())
    assert cluster.condition("Serving") == ("False", "NotAvailable")
    assert cluster.condition("Ready") == ("False", "RollingOut")
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")


def test_deleted_children_of_the_endpoint_are_made_again() -> None:
    cluster = Cluster(make_job()).run()
    for kind in ("Deployment", "Service"):
        cluster.vanish(kind, "travel-serve")
    cluster.vanish("ConfigMap", "travel-r1")
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert ("ConfigMap", "travel-r1") in cluster.objects


def test_a_job_that_is_restored_with_its_status_serves_the_run_before_the_last() -> None:
    """Its children had another uid as their owner, so that Kubernetes has removed them all: snapshots, too."""

    def second_is_worse(pod: dict[str, Any]) -> tuple[int, str]:
        run, stage = (pod["metadata"]["labels"][f"finetune-operator.io/{key}"] for key in ("run", "stage"))
        return 0, good_summary(stage, int(run), tuned=1.0 if run == "1" else 3.0)

    old = Cluster(make_job(), answer=second_is_worse).run().change(rerunToken="b").run()
    cluster = Cluster(make_job(uid="restored", rerunToken="b").model_copy(update={"status": old.job.status})).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.job.status.endpoint == old.job.status.endpoint
    assert cluster.created == ["Deployment/travel-serve", "Service/travel-serve"]


def test_a_lost_snapshot_of_an_old_run_is_named_and_its_servers_left_alone() -> None:
    """Of a version that did not note of a model what its server has to know."""
    cluster = Cluster(make_job()).run().change(rerunToken="b", serving={"run": 1}).run().forget("task", "baseName")
    cluster.vanish("ConfigMap", "travel-r1")
    failure = trouble(cluster)
    assert failure.reason is Reason.CONFIG_MISSING
    assert "travel-r1" in failure.message
    plan = cluster.plan()
    assert (plan.apply, plan.delete) == ((), ())


def test_a_changed_image_rolls_the_servers() -> None:
    cluster = Cluster(make_job()).run()
    cluster.settings = type(cluster.settings)(trainer_image="registry.example.com/trainer:0.2.0")
    assert [m["kind"] for m in cluster.plan().apply] == ["Deployment"]
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.created.count("Job/travel-r1-train") == 1


def test_servers_that_are_lost_are_asked_what_their_run_has_answered() -> None:
    """Another test is for the next run; asked of this one, it could keep it out of service."""
    cluster = Cluster(make_job()).run().change(serving={"smokeTest": {"prompt": "What is 6 times 7?"}}).run()
    asked = copy.deepcopy(cluster.objects["Deployment", "travel-serve"]["spec"])
    cluster.vanish("Deployment", "travel-serve")
    cluster.run()
    assert cluster.objects["Deployment", "travel-serve"]["spec"] == asked
    assert cluster.condition("Ready") == ("True", "Serving")
