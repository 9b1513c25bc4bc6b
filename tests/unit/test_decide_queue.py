"""compute.queueName: the queue lets a Job go, and nothing that it writes is ours."""

from __future__ import annotations

import pytest
from tests.simulator import Cluster, Manifest, make_job

from finetune_api.conditions import FailureReason as Reason
from finetune_api.conditions import Stage
from finetune_api.status import Failure
from finetune_operator.builders.shape import SHAPES
from finetune_operator.builders.stage_job import queue_labels

QUEUED = {"gpus": 1, "queueName": "team-a"}
NO_ROOM = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor default, "
    "1 more needed"
)
TOO_LARGE = (
    "couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu in flavor default, previously "
    "considered podsets requests (0) + current podset request (8) > maximum capacity (4)"
)


def failure_of(cluster: Cluster) -> Failure:
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.failure is not None
    return cluster.job.status.run.failure


def job(cluster: Cluster, stage: str) -> Manifest:
    return cluster.objects["Job", f"travel-r1-{stage.lower()}"]


def waiting(**compute: object) -> Cluster:
    """A job whose Train waits in its queue."""
    return Cluster(make_job(compute={**QUEUED, **compute})).run()


def test_what_takes_no_gpu_does_not_wait_and_the_rest_is_made_suspended() -> None:
    cluster = waiting(workloadPriorityClassName="high")
    labels = {stage: job(cluster, stage)["metadata"]["labels"] for stage in ("Prepare", "Train")}
    assert "kueue.x-k8s.io/queue-name" not in labels["Prepare"]
    assert "suspend" not in job(cluster, "Prepare")["spec"]
    assert labels["Train"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert labels["Train"]["kueue.x-k8s.io/priority-class"] == "high"
    assert job(cluster, "Train")["spec"]["suspend"] is True
    pod_labels = job(cluster, "Train")["spec"]["template"]["metadata"]["labels"]
    assert not [key for key in pod_labels if "kueue" in key], "the Job waits, not each pod"
    assert cluster.condition("Ready") == ("False", "Queued")
    assert "Queued" in cluster.events()
    assert "TrainingStarted" not in cluster.events()
    assert cluster.condition("DatasetValid")[0] == "True"


def test_admission_is_left_alone_and_eviction_keeps_the_job() -> None:
    cluster = waiting()
    cluster.queue_says(job(cluster, "Train"), NO_ROOM)
    cluster.execute(cluster.plan())
    assert NO_ROOM in failure_of(cluster).message
    assert failure_of(cluster).waiting
    cluster.suspend(job(cluster, "Train"), suspended=False, nodeSelector={"pool": "a"}, tolerations=[{"key": "spot"}])
    cluster.run(until=lambda c: bool(c.pods) and c.pods[-1]["status"]["phase"] == "Running")
    assert cluster.plan().apply == ()
    assert "TrainingStarted" in cluster.events()
    assert cluster.condition("Ready") == ("False", "Training")
    cluster.suspend(job(cluster, "Train"), suspended=True)
    cluster.run()
    assert failure_of(cluster).reason is Reason.QUEUED
    assert (cluster.plan().apply, cluster.plan().delete) == ((), ())
    assert cluster.created.count("Job/travel-r1-train") == 1, "its place in the queue stays"
    cluster.suspend(job(cluster, "Train"), suspended=False)
    cluster.run()
    assert job(cluster, "Evaluate")["spec"]["suspend"] is True
    assert failure_of(cluster).reason is Reason.QUEUED
    cluster.suspend(job(cluster, "Evaluate"), suspended=False)
    assert cluster.run().condition("Ready") == ("True", "Serving")


@pytest.mark.parametrize(
    ("message", "reason", "advice"),
    [
        (NO_ROOM, Reason.QUEUED, "Nothing to do"),
        ("Workload no longer fits after processing another workload", Reason.QUEUED, "Nothing to do"),
        (TOO_LARGE, Reason.QUEUE_UNAVAILABLE, "can never hold"),
        (
            "couldn't assign flavors to pod set main: resource nvidia.com/gpu unavailable in ClusterQueue",
            Reason.QUEUE_UNAVAILABLE,
            "can never hold",
        ),
        ("LocalQueue team-a doesn't exist", Reason.QUEUE_UNAVAILABLE, "compute.queueName"),
        ("LocalQueue team-a is inactive", Reason.QUEUE_UNAVAILABLE, "stopped"),
        ("ClusterQueue pool doesn't exist", Reason.QUEUE_UNAVAILABLE, "kubectl describe clusterqueue"),
        ("ClusterQueue pool is inactive", Reason.QUEUE_UNAVAILABLE, "kubectl describe clusterqueue"),
    ],
)
def test_why_a_queue_holds_it_back(message: str, reason: Reason, advice: str) -> None:
    cluster = waiting()
    cluster.queue_says(job(cluster, "Train"), message, "Inadmissible")
    cluster.execute(cluster.plan())
    failure = failure_of(cluster)
    assert (failure.reason, failure.waiting) == (reason, True)
    assert message in failure.message
    assert advice in failure.advice
    assert cluster.plan().status == cluster.job.status


def test_a_workload_that_gave_way_says_to_whom() -> None:
    cluster = waiting()
    cluster.queue_says(job(cluster, "Train"), NO_ROOM)
    evicted = {
        "type": "Evicted",
        "status": "True",
        "reason": "Preempted",
        "message": "Preempted to accommodate X.",
    }
    cluster.workloads["travel-r1-train"]["status"]["conditions"].append(evicted)
    cluster.execute(cluster.plan())
    assert "had to give way: Preempted to accommodate X." in failure_of(cluster).message


def test_a_deactivated_workload_is_told() -> None:
    cluster = waiting()
    cluster.queue_says(job(cluster, "Train"), "The workload is deactivated", active=False)
    cluster.execute(cluster.plan())
    assert failure_of(cluster).reason is Reason.QUEUE_UNAVAILABLE
    assert "job-travel-r1-train-abcde" in failure_of(cluster).message


def test_another_queue_makes_another_job_and_none_needs_none() -> None:
    """What waits and has never run is replaced, as with any other change of compute."""
    cluster = waiting(queueName="wrong")
    cluster.queue_says(job(cluster, "Train"), "LocalQueue wrong doesn't exist", "Inadmissible")
    cluster.change(compute=QUEUED).run()
    assert job(cluster, "Train")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    cluster.workloads.clear()
    cluster.change(compute={"gpus": 1}).run()
    assert cluster.condition("Ready") == ("True", "Serving")


def test_a_job_that_somebody_suspended_is_told() -> None:
    cluster = Cluster(make_job()).run(until=lambda c: ("Job", "travel-r1-train") in c.objects)
    cluster.suspend(job(cluster, "Train"), suspended=True)
    cluster.run()
    assert failure_of(cluster).reason is Reason.JOB_SUSPENDED
    assert "kubectl patch job travel-r1-train" in failure_of(cluster).advice
    cluster.suspend(job(cluster, "Train"), suspended=False)
    assert cluster.run().condition("Ready") == ("True", "Serving")


def test_a_suspended_finetunejob_leaves_the_queue() -> None:
    cluster = waiting().change(suspend=True).run()
    assert ("Job", "travel-r1-train") not in cluster.objects
    assert cluster.condition("Ready") == ("False", "Suspended")
    cluster.change(suspend=False).run()
    assert cluster.condition("Ready") == ("False", "Queued")


def test_what_runs_on_compute_waits_and_nothing_else() -> None:
    wanted = make_job(compute=QUEUED)
    assert [stage for stage in SHAPES if queue_labels(wanted, stage)] == [Stage.TRAIN, Stage.EVALUATE]
    assert not any(queue_labels(make_job(), stage) for stage in SHAPES)
