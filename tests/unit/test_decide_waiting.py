"""What a run waits for shows in the status while it lasts: what holds a pod that is there, and what cannot be made."""

from __future__ import annotations

from typing import Any

import pytest
from tests.failures import failure_of, no_failure, started
from tests.simulator import Cluster, make_job, set_state, stamp

from finetune_api.conditions import FailureReason as Reason
from finetune_api.conditions import Stage
from finetune_operator.decide import decide
from finetune_operator.plan import ApplyFailure


def waiting_for(reason: str, message: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "main", "state": state}]}


def unscheduled(message: str) -> dict[str, Any]:
    entry = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"conditions": [entry]}


NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
WAITING = [
    (unscheduled(NO_GPU), Reason.UNSCHEDULABLE, "nvidia.com/gpu"),
    (unscheduled("0/1 nodes are available: 1 Insufficient memory."), Reason.UNSCHEDULABLE, "requests"),
    (
        unscheduled("0/2 nodes are available: 2 had untolerated taint {x: y}."),
        Reason.UNSCHEDULABLE,
        "tolerations",
    ),
    (unscheduled("pod has unbound immediate PersistentVolumeClaims."), Reason.STORAGE_UNBOUND, "StorageClass"),
    (unscheduled('persistentvolumeclaim "models" not found'), Reason.STORAGE_UNBOUND, "PersistentVolumeClaim"),
    (waiting_for("ErrImagePull", "not found"), Reason.IMAGE_PULL, "image"),
    (waiting_for("ImagePullBackOff", "Back-off pulling image"), Reason.IMAGE_PULL, "image"),
    (waiting_for("InvalidImageName", "couldn't parse"), Reason.IMAGE_PULL, "image"),
    (waiting_for("CreateContainerConfigError", 'secret "hf" not found'), Reason.CONFIG_MISSING, "Secret"),
]


@pytest.mark.parametrize(("state", "reason", "hint"), WAITING)
def test_what_a_pod_waits_for_shows_while_it_waits(state: dict[str, Any], reason: Reason, hint: str) -> None:
    cluster = started("Train")
    cluster.pods[-1]["status"] |= state
    plan = cluster.plan()
    failure = failure_of(plan.status)
    assert (failure.reason, failure.stage, failure.waiting) == (reason, Stage.TRAIN, True)
    assert failure.since == stamp(cluster.now)
    assert hint in failure.advice
    cluster.execute(plan)
    assert cluster.condition("Reconciling") == ("True", reason.value)
    assert cluster.condition("Ready") == ("False", reason.value)  # `kubectl get` shows it
    assert failure.message in cluster.job.status.conditions[0].message
    assert "  " not in plan.events[0].message
    assert plan.events[0].message.endswith(f". {failure.advice}")
    assert [event.reason for event in plan.events] == [reason.value]
    cluster.now = cluster.now.replace(minute=7)
    assert cluster.plan().status == cluster.job.status  # `since` does not move
    cluster.pods[-1]["status"] = {"phase": "Pending"}
    cluster.run()
    assert no_failure(cluster.job.status)
    assert cluster.condition("Ready") == ("True", "Serving")
    assert [cluster.events().count(each) for each in (reason.value, "Resolved")] == [1, 1]


def test_a_volume_that_cannot_be_mounted_shows_after_a_minute() -> None:
    cluster = started("Prepare")
    since = stamp(cluster.now)
    cluster.pods[-1]["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": since},
        {"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": since},
    ]
    early = cluster.plan()
    assert no_failure(early.status)
    assert early.requeue_after is not None
    assert 60 <= early.requeue_after <= 62
    cluster.now = cluster.now.replace(minute=cluster.now.minute + 1, second=cluster.now.second + 2)
    failure = failure_of(cluster.plan().status)
    assert failure.reason is Reason.CONFIG_MISSING
    assert "ConfigMaps: travel-data" in failure.message


def test_a_pod_that_never_ran_is_replaced_when_compute_changes() -> None:
    cluster = started("Train", compute={"gpus": 1})
    cluster.pods[-1]["status"] |= unscheduled(NO_GPU)
    cluster.execute(cluster.plan())
    cluster.change(compute={"gpus": 0})
    plan = cluster.plan()
    assert [(ref.kind, ref.name) for ref in plan.delete] == [("Job", "travel-r1-train")]
    assert plan.apply == ()
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.number == 1
    assert cluster.created.count("Job/travel-r1-train") == 2


def test_a_pod_that_runs_is_left_alone_when_compute_changes() -> None:
    cluster = started("Train")
    set_state(cluster.pods[-1], "Running", {"running": {}})
    cluster.change(compute={"gpus": 0, "resources": {"requests": {"cpu": "2"}}})
    assert cluster.plan().delete == ()


@pytest.mark.parametrize("reason", [Reason.QUOTA_EXCEEDED, Reason.NAME_CONFLICT, Reason.SPEC_INVALID])
def test_a_refused_write_shows_and_is_tried_again(reason: Reason) -> None:
    cluster = Cluster(make_job())
    observed = cluster.observed()
    refused = type(observed)(apply_failure=ApplyFailure(reason, "exceeded quota: team-a"))
    plan = decide(cluster.job, refused, cluster.now, cluster.settings)
    failure = failure_of(plan.status)
    assert (failure.reason, failure.waiting, failure.message) == (reason, True, "exceeded quota: team-a")
    assert len(plan.apply) == 2
    cluster.run()
    assert no_failure(cluster.job.status)


def test_the_children_of_a_predecessor_are_waited_for() -> None:
    """A job deleted and made anew at once: the garbage collector is not through yet."""
    cluster = Cluster(make_job()).run()
    cluster.job = make_job(uid="another-uid")
    plan = cluster.plan()
    assert plan.apply == ()
    assert plan.delete == ()
    assert plan.requeue_after is not None
    assert failure_of(plan.status).reason is Reason.NAME_CONFLICT
    for key in list(cluster.objects):
        cluster.vanish(*key)
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.number == 1
