"""spec.suspend: in every stage what runs is ended with its checkpoint, nothing is made, and it goes on from there."""

from __future__ import annotations

import pytest
from tests.simulator import Cluster, Manifest, make_job, set_state

from finetune_api.conditions import FailureReason, Stage
from finetune_api.interruptions import StopCosts
from finetune_api.job import run_hash
from finetune_api.reports import StageFailure, Summary
from finetune_api.status import Checkpoint, Progress
from finetune_operator.plan import ProgressReport

JOB_STAGES = ("Prepare", "Train", "Evaluate")


def interrupted(step: int, lost: int = 0) -> str:
    """The last words of a training that was asked to stop."""
    return Summary(
        stage=Stage.TRAIN,
        ok=False,
        run=1,
        failure=StageFailure(reason=FailureReason.INTERRUPTED, message="asked to stop"),
        checkpoint=Checkpoint(step=step),
        stop_costs=StopCosts(step_seconds=20, save_seconds=40, lost_steps=lost),
    ).to_message()


def name_of(stage: str) -> str:
    return f"travel-r1-{stage.lower()}"


def running(stage: str, **spec: object) -> Cluster:
    """A cluster in which the stage's pod runs."""

    def reached(cluster: Cluster) -> bool:
        pods = [pod for pod in cluster.pods if pod["metadata"]["labels"]["finetune-operator.io/stage"] == stage]
        return bool(pods) and pods[-1]["status"]["phase"] == "Running"

    return Cluster(make_job(**spec)).run(until=reached)


def jobs(cluster: Cluster) -> list[str]:
    return [name for kind, name in cluster.objects if kind == "Job"]


def job(cluster: Cluster, stage: str) -> Manifest:
    return cluster.objects["Job", name_of(stage)]


@pytest.mark.parametrize("stage", JOB_STAGES)
def test_what_runs_is_ended_and_goes_on_later(stage: str) -> None:
    cluster = running(stage).change(suspend=True)
    cluster.execute(cluster.plan())
    assert job(cluster, stage)["metadata"]["deletionTimestamp"], "the Job is deleted: its pods have their grace period"
    assert cluster.condition("Reconciling") == ("True", "Suspending")
    assert cluster.condition("Ready") == ("False", "Suspending")
    assert cluster.condition("Suspended") == ("False", "Suspending")
    cluster.run()
    assert name_of(stage) not in jobs(cluster)
    for kind in ("Reconciling", "Stalled"):
        assert cluster.condition(kind)[0] == "False"
    assert cluster.condition("Ready") == ("False", "Suspended")
    assert cluster.condition("Suspended") == ("True", "Suspended")
    assert cluster.plan().status == cluster.job.status
    assert (cluster.plan().apply, cluster.plan().delete) == ((), ())
    cluster.change(suspend=False).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert "Suspended" not in [condition.type for condition in cluster.job.status.conditions]
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.number == 1, "suspension is no part of a run"
    assert cluster.created.count(f"Job/{name_of(stage)}") == 2
    assert [event for event in cluster.events() if event in ("Suspended", "Resumed")] == ["Suspended", "Resumed"]


@pytest.mark.parametrize("stage", JOB_STAGES)
def test_a_crash_between_any_two_writes_ends_the_same_way(stage: str) -> None:
    for writes in range(3):
        cluster = running(stage).change(suspend=True)
        cluster.execute(cluster.plan(), writes)
        cluster.run()
        assert cluster.condition("Suspended") == ("True", "Suspended")
        cluster.change(suspend=False).run()
        assert cluster.condition("Ready") == ("True", "Serving")
        assert cluster.created.count(f"Job/{name_of(stage)}") == 2


def test_a_job_that_is_applied_suspended_makes_nothing() -> None:
    cluster = Cluster(make_job(suspend=True)).run()
    assert cluster.objects == {}
    assert cluster.condition("Suspended") == ("True", "Suspended")
    assert cluster.change(suspend=False).run().condition("Ready") == ("True", "Serving")


def test_the_saved_checkpoint_is_told_and_the_next_job_has_the_time_that_was_measured() -> None:
    cluster = running("Train").change(suspend=True)
    cluster.execute(cluster.plan())
    ended = {"terminated": {"exitCode": 75, "message": interrupted(17, lost=2)}}
    set_state(cluster.pods_of(job(cluster, "Train"))[0], "Failed", ended)
    cluster.execute(cluster.plan())
    cluster.run()
    run = cluster.job.status.run
    assert run is not None
    assert (run.checkpoint, run.failure) == (Checkpoint(step=17), None)
    assert "from the checkpoint of step 17" in next(
        c.message for c in cluster.job.status.conditions if c.type == "Ready"
    )
    cluster.change(suspend=False)
    cluster.execute(cluster.plan())
    assert job(cluster, "Train")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 2 * 60 + 15
    assert job(cluster, "Train")["metadata"]["labels"]["finetune-operator.io/attempt"] == "2"
    run = cluster.job.status.run
    assert run is not None
    assert run.interruptions is not None
    assert (run.interruptions.lost_steps, run.interruptions.grace_seconds) == (2, 135)


def test_a_result_that_is_there_counts_all_the_same() -> None:
    """The pod had ended when the user suspended the job: nothing is thrown away."""
    cluster = running("Train")
    train = job(cluster, "Train")
    cluster.step_pod(cluster.pods_of(train)[0])
    cluster.judge_job(train)
    cluster.change(suspend=True).run()
    run = cluster.job.status.run
    assert run is not None
    assert run.model is not None
    assert "travel-r1-evaluate" not in jobs(cluster)
    assert cluster.condition("Suspended") == ("True", "Suspended")


def test_the_promoted_model_keeps_answering_and_a_new_run_waits() -> None:
    cluster = Cluster(make_job()).run().change(suspend=True).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.condition("Suspended") == ("True", "NothingToDo")
    assert ("Deployment", "travel-serve") in cluster.objects
    cluster.change(method={"type": "LoRA", "rank": 4}).run()
    assert cluster.condition("Ready") == ("False", "Suspended")
    assert cluster.condition("Serving") == ("True", "Available")
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.number == 2
    assert "travel-r2-prepare" not in jobs(cluster)
    cluster.change(suspend=False).run()
    assert cluster.job.status.model is not None
    assert cluster.job.status.model.run == 2


def test_a_run_that_failed_stays_failed() -> None:
    cluster = Cluster(make_job(), answer=lambda pod: (10, "")).run().change(suspend=True).run()
    assert cluster.condition("Stalled") == ("True", "SpecInvalid")


def test_suspension_waits_for_a_pod_whose_job_somebody_deleted() -> None:
    cluster = running("Train")
    pod = cluster.pods_of(job(cluster, "Train"))[0]
    cluster.vanish("Job", "travel-r1-train")
    cluster.former = [pod]
    cluster.change(suspend=True)
    cluster.execute(cluster.plan())
    assert cluster.condition("Suspended") == ("False", "Suspending")
    cluster.former = []
    assert cluster.run().condition("Suspended") == ("True", "Suspended")


def test_suspend_is_no_part_of_the_hash() -> None:
    assert run_hash(make_job(suspend=True).spec) == run_hash(make_job().spec)


def test_a_late_report_takes_no_checkpoint_back() -> None:
    cluster = running("Train")
    cluster.progress = ProgressReport(
        1, Progress(step=20, total_steps=40), Checkpoint(step=20), StopCosts(lost_steps=1)
    )
    cluster.execute(cluster.plan())
    cluster.progress = ProgressReport(1, Progress(step=12, total_steps=40), Checkpoint(step=10), StopCosts())
    cluster.now = cluster.now.replace(hour=5)
    cluster.execute(cluster.plan())
    run = cluster.job.status.run
    assert run is not None
    assert run.checkpoint is not None
    assert run.interruptions is not None
    assert (run.checkpoint.step, run.interruptions.lost_steps) == (20, 1)
