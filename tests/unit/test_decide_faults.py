"""What is waited for though a pod failed: a full volume, a node that is lost, one that puts the pod out."""

from __future__ import annotations

from typing import Any

from tests.simulator import Cluster, Manifest, make_job, set_state, stamp, succeed

from finetune_api.conditions import FailureReason as Reason
from finetune_api.conditions import Stage
from finetune_api.reports import StageFailure, Summary
from finetune_api.status import Checkpoint, Failure

STAGE = "finetune-operator.io/stage"
FULL = StageFailure(reason=Reason.STORAGE_FULL, message="No space left on device", advice="Make room.")
TRIES = 9  # more than any backoffLimit


def failure_of(cluster: Cluster) -> Failure:
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.failure is not None
    return cluster.job.status.run.failure


def full_in(stage: Stage) -> Any:
    words = Summary(stage=stage, ok=False, run=1, failure=FULL, checkpoint=Checkpoint(step=20)).to_message()
    left = iter(range(TRIES))

    def answer(pod: Manifest) -> tuple[int, str]:
        here = pod["metadata"]["labels"][STAGE] == stage.value and next(left, None) is not None
        return (73, words) if here else succeed(pod)

    return answer


def test_a_full_volume_ends_no_run_however_often_it_is_tried() -> None:
    cluster = Cluster(make_job(), answer=full_in(Stage.TRAIN))
    cluster.run(until=lambda c: bool(c.job.status.run and c.job.status.run.failure))
    told = failure_of(cluster)
    assert (told.reason, told.waiting, told.stage, told.advice) == (
        Reason.STORAGE_FULL,
        True,
        Stage.TRAIN,
        "Make room.",
    )
    assert cluster.condition("Reconciling") == ("True", "StorageFull")
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.created.count("Job/travel-r1-train") == 1, "its Job keeps its place"
    assert cluster.objects["Job", "travel-r1-train"]["status"].get("failed", 0) == 0


def test_another_claim_is_taken_while_the_first_stage_waits_for_room() -> None:
    cluster = Cluster(make_job(), answer=full_in(Stage.PREPARE))
    cluster.run(until=lambda c: bool(c.job.status.run and c.job.status.run.failure))
    cluster.change(output={"claimName": "larger"}).execute(cluster.plan())
    assert cluster.objects["Job", "travel-r1-prepare"]["metadata"]["deletionTimestamp"]
    cluster.run()
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.claim_name == "larger"


def training() -> tuple[Cluster, Manifest]:
    """A training that runs, on the node gpu-7."""
    cluster = Cluster(make_job()).run(
        until=lambda c: bool(c.pods and c.pods[-1]["metadata"]["labels"][STAGE] == "Train")
    )
    pod = cluster.pods[-1]
    pod["spec"] = {**pod["spec"], "nodeName": "gpu-7"}
    set_state(pod, "Running", {"running": {"startedAt": stamp(cluster.now)}})
    pod["status"]["containerStatuses"][0]["ready"] = True
    cluster.execute(cluster.plan())
    assert cluster.condition("Reconciling") == ("True", "Training")
    return cluster, pod


def test_a_lost_node_is_told_also_when_the_cluster_ends_its_pods() -> None:
    cluster, pod = training()
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False", "lastTransitionTime": stamp(cluster.now)}]
    cluster.execute(cluster.plan())
    told = failure_of(cluster)
    assert (told.reason, told.waiting) == (Reason.NODE_LOST, True)
    assert "gpu-7" in told.message
    assert "kubectl taint nodes gpu-7 " in told.advice
    written = cluster.job.status.run
    taints = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    pod["status"]["conditions"] += [taints]
    pod["metadata"]["deletionTimestamp"] = stamp(cluster.now)
    plan = cluster.plan()
    assert not plan.apply
    assert not plan.delete, "nobody's pod is removed by force"
    assert plan.status.run is not None
    assert written is not None
    assert plan.status.run.failure == written.failure


def test_a_training_that_is_suspended_on_a_lost_node_says_what_it_waits_for() -> None:
    cluster, pod = training()
    cluster.change(suspend=True).execute(cluster.plan())
    assert cluster.condition("Suspended") == ("False", "Suspending")
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False", "lastTransitionTime": stamp(cluster.now)}]
    cluster.execute(cluster.plan())
    assert failure_of(cluster).reason is Reason.NODE_LOST


def test_a_pod_above_its_own_limit_is_made_anew_as_soon_as_the_limit_is_raised() -> None:
    cluster, pod = training()
    words = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
    pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": words}
    cluster.execute(cluster.plan())
    assert failure_of(cluster).reason is Reason.EVICTED
    more = {"gpus": 0, "resources": {"limits": {"ephemeral-storage": "4Gi"}}}
    cluster.change(compute=more).execute(cluster.plan())
    assert cluster.objects["Job", "travel-r1-train"]["metadata"]["deletionTimestamp"]
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
