"""Pods that must not be there yet, and pods that may not come to be."""

from __future__ import annotations

import pytest
from tests.simulator import Cluster, Manifest, make_job, set_state, stamp

from finetune_api.conditions import FailureReason as Reason
from finetune_api.conditions import Stage
from finetune_api.status import Failure
from finetune_operator.admission import refusal_finding
from finetune_operator.plan import PodRefusal

NO_PODS = (
    'Error creating: pods "travel-r1-prepare-{}" is forbidden: exceeded quota: no-pods, '
    "requested: pods=1, used: pods={}, limited: pods=0"
)


def failure_of(cluster: Cluster) -> Failure:
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.failure is not None
    return cluster.job.status.run.failure


def former(name: str, stage: str = "Train", run: int = 1) -> Manifest:
    labels = {"finetune-operator.io/run": str(run), "finetune-operator.io/stage": stage}
    owners = [{"uid": "gone", "kind": "Job", "controller": True}]
    pod: Manifest = {"metadata": {"name": name, "labels": labels, "ownerReferences": owners}, "status": {}}
    set_state(pod, "Running", {"running": {}})
    return pod


def jobs(cluster: Cluster) -> list[str]:
    return [name for kind, name in cluster.objects if kind == "Job"]


def test_no_job_is_made_beside_a_former_trainer_that_still_saves() -> None:
    """The job was deleted and applied again; the pod has its grace period to save a checkpoint."""
    cluster = Cluster(make_job())
    cluster.former = [former("travel-r1-train-abcde")]
    plan = cluster.plan()
    assert (plan.apply, plan.requeue_after) == ((), 5.0)
    cluster.execute(plan)
    failure = failure_of(cluster)
    assert (failure.reason, failure.waiting, failure.stage) == (Reason.FORMER_POD, True, Stage.PREPARE)
    assert "travel-r1-train-abcde" in failure.message
    assert "kubectl delete pod" in failure.advice
    assert cluster.condition("Reconciling")[0] == "True"
    assert "travel-r1-train-abcde" in cluster.job.status.conditions[0].message
    assert "FormerPod" in cluster.events()
    assert cluster.plan().status == cluster.job.status, "waiting writes nothing"
    set_state(cluster.former[0], "Failed", {"terminated": {"exitCode": 75}})
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")


def test_a_later_stage_waits_for_the_pod_of_its_own_deleted_job() -> None:
    """`kubectl delete job` does not wait for the pods, as we do."""
    cluster = Cluster(make_job()).run(until=lambda c: "travel-r1-train" in jobs(c))
    cluster.vanish("Job", "travel-r1-train")
    cluster.former = [former("travel-r1-train-1")]
    cluster.execute(cluster.plan())
    assert "travel-r1-train" not in jobs(cluster)
    assert failure_of(cluster).reason is Reason.FORMER_POD
    cluster.former = []
    assert cluster.run().condition("Ready") == ("True", "Serving")


def test_pods_that_write_elsewhere_are_not_waited_for() -> None:
    """Another run has another folder, and what has ended writes no more."""
    over = former("over")
    set_state(over, "Succeeded", {"terminated": {"exitCode": 0}})
    cluster = Cluster(make_job())
    cluster.former = [former("other-run", run=7), over]
    assert [manifest["kind"] for manifest in cluster.plan().apply] == ["ConfigMap", "Job"]


def without_pods() -> Cluster:
    """The first Job is there, and no pod of it."""
    return Cluster(make_job()).run(until=lambda c: bool(jobs(c)))


def test_a_quota_that_lets_no_pod_be_made_is_named_while_it_lasts() -> None:
    cluster = without_pods()
    cluster.refusals = {"travel-r1-prepare": PodRefusal(NO_PODS.format("abcde", 3), stamp(cluster.now))}
    cluster.execute(cluster.plan())
    failure = failure_of(cluster)
    assert (failure.reason, failure.waiting, failure.stage) == (Reason.QUOTA_EXCEEDED, True, Stage.PREPARE)
    assert "exceeded quota: no-pods, requested: pods=1, limited: pods=0" in failure.message
    assert "exceeded quota" in cluster.job.status.conditions[0].message
    assert failure.advice
    written = cluster.job.status
    again = "(combined from similar events): " + NO_PODS.format("fghij", 4)
    cluster.refusals = {"travel-r1-prepare": PodRefusal(again, stamp(cluster.now))}
    assert cluster.plan().status == written, "another attempt of the Job controller is no news"
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")


def test_a_pod_that_was_made_since_outdates_the_refusal() -> None:
    cluster = without_pods()
    cluster.refusals = {"travel-r1-prepare": PodRefusal(NO_PODS.format("abcde", 3), stamp(cluster.now))}
    pod = cluster.start_pod(cluster.objects["Job", "travel-r1-prepare"])
    cluster.execute(cluster.plan())
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.failure is None
    set_state(pod, "Failed", {"terminated": {"exitCode": 75}})
    cluster.execute(cluster.plan())
    assert failure_of(cluster).reason is Reason.INTERRUPTED
    later = stamp(cluster.now.replace(minute=cluster.now.minute + 1))
    cluster.refusals = {"travel-r1-prepare": PodRefusal(NO_PODS.format("abcde", 3), later)}
    cluster.execute(cluster.plan())
    assert failure_of(cluster).reason is Reason.QUOTA_EXCEEDED, "its successor is refused"


def test_a_job_that_no_pod_can_be_made_of_follows_a_change_of_compute() -> None:
    cluster = without_pods()
    text = 'Error creating: pods "x" is forbidden: maximum memory usage per Container is 1Gi, but limit is 4Gi'
    cluster.refusals = {"travel-r1-prepare": PodRefusal(text, stamp(cluster.now))}
    cluster.execute(cluster.plan())
    assert failure_of(cluster).reason is Reason.POD_REFUSED
    cluster.change(compute={"gpus": 0, "resources": {"limits": {"memory": "512Mi"}}})
    plan = cluster.plan()
    assert [ref.name for ref in plan.delete] == ["travel-r1-prepare"]


FORBIDDEN = 'Error creating: pods "travel-r1-train-x" is forbidden: '


@pytest.mark.parametrize(
    ("message", "reason", "hint"),
    [
        (FORBIDDEN + "exceeded quota: gpus, requested: a/b=1, used: a/b=4, limited: a/b=4", Reason.QUOTA_EXCEEDED, ""),
        (FORBIDDEN + "failed quota: all: must specify limits.memory for: main", Reason.QUOTA_EXCEEDED, "LimitRange"),
        (
            FORBIDDEN + 'violates PodSecurity "restricted:latest": unrestricted capabilities',
            Reason.POD_REFUSED,
            "pod-security.kubernetes.io",
        ),
        (FORBIDDEN + "maximum cpu usage per Pod is 2, but limit is 4", Reason.POD_REFUSED, "LimitRange"),
        (
            'Error creating: Pod "travel-r1-train-x" is invalid: spec.containers[0].resources.requests: Invalid value: '
            '"1Gi": must be less than or equal to memory limit of 64Mi',
            Reason.POD_REFUSED,
            "LimitRange",
        ),
        (FORBIDDEN + "no PriorityClass with name batch was found", Reason.SPEC_INVALID, "priorityClassName"),
        (
            'Error creating: admission webhook "policy.example.com" denied the request: no',
            Reason.POD_REFUSED,
            "webhook",
        ),
        ("Error creating: Internal error occurred: a timeout", Reason.POD_REFUSED, ""),
    ],
)
def test_each_way_to_refuse_a_pod_has_its_advice(message: str, reason: Reason, hint: str) -> None:
    finding = refusal_finding(message)
    assert finding.reason is reason
    assert hint in finding.advice
    assert "travel-r1-train-x" not in finding.message
    assert message.rpartition(": ")[2].split()[-1] in finding.message
