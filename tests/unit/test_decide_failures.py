"""A stage that fails shows in the status with reason and advice: while it is tried again, or as the end of the run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.failures import fail_in, failed_summary, failure_of, no_failure, started
from tests.simulator import Cluster, Manifest, make_job, set_state, stamp, succeed

from finetune_api.conditions import FailureReason as Reason
from finetune_api.conditions import Stage
from finetune_api.reasons import REASONS
from finetune_api.status import DatasetStatus, FineTuneJobStatus, Problem

FAILED_LINES = Problem(check="roles", count=3, lines=[4, 7, 9], message="The last message must be the assistant's.")


def test_broken_data_ends_the_run_before_training() -> None:
    message = failed_summary(
        Stage.PREPARE,
        Reason.DATASET_INVALID,
        "train: lines 4, 7, 9 are broken",
        "Correct them.",
        dataset=DatasetStatus(train_examples=9, problems=[FAILED_LINES]),
    )
    cluster = Cluster(make_job(), answer=fail_in("Prepare", 10, message)).run()
    status = cluster.job.status
    assert cluster.condition("Stalled") == ("True", "DatasetInvalid")
    assert cluster.condition("Ready") == ("False", "DatasetInvalid")
    assert cluster.condition("DatasetValid") == ("False", "DatasetInvalid")
    assert cluster.condition("Trained") == ("Unknown", "Pending")
    failure = failure_of(status)
    assert (failure.message, failure.advice) == ("train: lines 4, 7, 9 are broken", "Correct them.")
    assert (failure.stage, failure.waiting) == (Stage.PREPARE, False)
    assert status.run is not None
    assert status.run.dataset is not None
    assert status.run.dataset.problems[0].lines == [4, 7, 9]
    assert status.run.attempt == 1  # nothing followed
    assert "Job/travel-r1-train" not in cluster.created
    assert [record.result for record in status.runs] == ["Failed"]
    assert cluster.events() == ["RunStarted", "Failed"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (10, Reason.SPEC_INVALID),
        (11, Reason.CUDA_OUT_OF_MEMORY),
        (12, Reason.LOSS_NOT_FINITE),
        (13, Reason.ARTIFACT_INVALID),
        (137, Reason.OUT_OF_MEMORY),
        (1, Reason.SYSTEM_FAULT),
    ],
)
def test_an_exit_code_without_words_still_has_a_reason(code: int, reason: Reason) -> None:
    cluster = Cluster(make_job(), answer=fail_in("Train", code)).run()
    failure = failure_of(cluster.job.status)
    assert (failure.reason, failure.stage, failure.waiting) == (reason, Stage.TRAIN, False)
    assert failure.advice
    assert cluster.condition("Trained") == ("False", reason.value)
    tries = sum(1 for pod in cluster.pods if "train" in pod["metadata"]["name"])
    assert tries == (1 if code in (10, 11, 12, 13) else 4)


def test_a_failed_run_stays_failed_though_its_job_is_gone() -> None:
    cluster = Cluster(make_job(), answer=fail_in("Train", 12)).run()
    cluster.vanish("Job", "travel-r1-train")
    plan = cluster.plan()
    assert (plan.apply, plan.status) == ((), cluster.job.status)


def test_out_of_memory_shows_while_it_is_tried_again() -> None:
    cluster = Cluster(make_job(), answer=fail_in("Train", 137))
    cluster.run(until=lambda c: "train" in (c.pods[-1]["metadata"]["name"] if c.pods else "") and ended(c.pods[-1]))
    status = cluster.plan().status
    failure = failure_of(status)
    assert (failure.reason, failure.waiting) == (Reason.OUT_OF_MEMORY, True)
    assert "limits.memory" in failure.advice
    assert status.run is not None
    assert status.run.attempt == 2
    cluster.execute(cluster.plan())
    cluster.answer = succeed
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert no_failure(cluster.job.status)


def ended(pod: Manifest) -> bool:
    return pod["status"]["phase"] in ("Failed", "Succeeded")


def test_more_memory_gives_a_failed_stage_another_try_from_where_it_was() -> None:
    cluster = Cluster(make_job(), answer=fail_in("Train", 137)).run()
    cluster.answer = succeed
    cluster.change(compute={"gpus": 0, "resources": {"limits": {"memory": "64Gi"}}}).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.created.count("Job/travel-r1-prepare") == 1
    assert cluster.created.count("Job/travel-r1-train") == 2
    assert [(r.number, r.result) for r in cluster.job.status.runs] == [(1, "Promoted")]


def test_the_advice_can_be_heeded_when_the_failed_job_is_gone_too() -> None:
    """Somebody deleted it, or the job came out of a backup without its children."""
    cluster = Cluster(make_job(), answer=fail_in("Train", 137)).run()
    cluster.vanish("Job", "travel-r1-train")
    cluster.answer = succeed
    cluster.change(suspend=True, compute={"gpus": 0, "resources": {"limits": {"memory": "64Gi"}}}).run()
    assert cluster.condition("Suspended") == ("True", "Suspended")
    assert cluster.created.count("Job/travel-r1-train") == 1
    cluster.change(suspend=False).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.created.count("Job/travel-r1-train") == 2
    assert cluster.objects["Job", "travel-r1-train"]["metadata"]["labels"]["finetune-operator.io/attempt"] > "1"
    assert [(r.number, r.result) for r in cluster.job.status.runs] == [(1, "Promoted")]


def test_another_try_is_not_forgotten_while_the_failed_job_is_still_seen() -> None:
    """The deletion was sent, and its event has not come back yet."""
    cluster = Cluster(make_job(), answer=fail_in("Train", 137)).run()
    cluster.change(compute={"gpus": 0, "resources": {"limits": {"memory": "64Gi"}}})
    first = cluster.plan()
    assert [ref.name for ref in first.delete] == ["travel-r1-train"]
    cluster.write_status(first.status)
    second = cluster.plan()
    assert second.status == first.status
    assert second.events == ()


def test_another_operator_image_does_not_try_failed_runs_again() -> None:
    cluster = Cluster(make_job(), answer=fail_in("Train", 12)).run()
    cluster.settings = type(cluster.settings)(trainer_image="registry.example.com/trainer:0.2.0")
    assert cluster.plan().delete == ()


def test_an_interruption_is_not_counted_and_the_attempt_is() -> None:
    codes = iter([75, 75, 75, 75, 75, 75])
    cluster = Cluster(make_job())

    def answer(pod: Manifest) -> tuple[int, str]:
        if pod["metadata"]["labels"]["finetune-operator.io/stage"] == "Train":
            code = next(codes, 0)
            if code:
                return code, ""
        return succeed(pod)

    cluster.answer = answer
    attempts: list[int] = []

    def look(c: Cluster) -> bool:
        assert c.job.status.run is not None
        if c.job.status.stage == Stage.TRAIN:
            attempts.append(c.job.status.run.attempt)
        return False

    cluster.run(until=look)
    assert cluster.condition("Ready") == ("True", "Serving")
    assert max(attempts) == 7
    assert attempts == sorted(attempts)


def test_a_verdict_hangs_on_no_clock() -> None:
    cluster = started("Train")
    end = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "limit"}
    cluster.objects["Job", "travel-r1-train"]["status"] = {
        "conditions": [{**end, "lastTransitionTime": stamp(cluster.now)}]
    }
    cluster.pods = []
    for hours in (-3, 6):
        cluster.now += timedelta(hours=hours)
        cluster.watched_only = True
        assert cluster.plan().unread, "its pod may still be seen"
        cluster.watched_only = False
        assert not failure_of(cluster.plan().status).waiting


ENDED = {
    "by a pod that is known": ("PodFailurePolicy", [12], 1, False),
    "by one of which nothing is known": ("PodFailurePolicy", [75], 1, True),
    "after as many tries as are known": ("BackoffLimitExceeded", [1, 1, 1, 1], 4, False),
    "after one more": ("BackoffLimitExceeded", [1, 1, 1], 4, True),
    "without a pod": ("BackoffLimitExceeded", [], 0, True),
}


@pytest.mark.parametrize(("reason", "codes", "failed", "unread"), ENDED.values(), ids=ENDED)
def test_a_job_failed_by_a_pod_that_is_not_known_has_no_verdict_yet(
    reason: str, codes: list[int], failed: int, unread: bool
) -> None:
    cluster = started("Train")
    job = cluster.objects["Job", "travel-r1-train"]
    cluster.pods = []
    for code in codes:
        pod = cluster.start_pod(job)
        set_state(pod, "Failed", {"terminated": {"exitCode": code, "message": ""}})
    end = {
        "type": "Failed",
        "status": "True",
        "reason": reason,
        "message": "",
        "lastTransitionTime": stamp(cluster.now),
    }
    job["status"] = {"conditions": [end], "failed": failed}
    cluster.watched_only = True
    assert cluster.plan().unread is unread


def test_an_evicted_pod_names_what_ran_out() -> None:
    cluster = started("Train")
    text = "The node was low on resource: ephemeral-storage."
    cluster.pods[-1]["status"] = {"phase": "Failed", "reason": "Evicted", "message": text}
    failure = failure_of(cluster.plan().status)
    assert (failure.reason, failure.waiting) == (Reason.EVICTED, True)
    assert text in failure.message
    assert "ephemeral-storage" in failure.advice


@pytest.mark.parametrize(
    "text",
    [
        'Usage of EmptyDir volume "tmp" exceeds the limit "8Gi". ',
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
        'Container main exceeded its local ephemeral storage limit "1Gi". ',
    ],
)
def test_a_pod_that_passed_its_own_limit_of_scratch_space_is_told_to_raise_it(text: str) -> None:
    cluster = started("Train")
    cluster.pods[-1]["status"] = {"phase": "Failed", "reason": "Evicted", "message": text}
    failure = failure_of(cluster.plan().status)
    assert failure.reason is Reason.EVICTED
    assert "limits.ephemeral-storage" in failure.advice


def test_a_deleted_pod_is_an_interruption() -> None:
    cluster = started("Train")
    set_state(cluster.pods[-1], "Running", {"running": {}})
    cluster.execute(cluster.plan())
    cluster.pods[-1]["metadata"]["deletionTimestamp"] = stamp(cluster.now)
    plan = cluster.plan()
    assert failure_of(plan.status).reason is Reason.INTERRUPTED
    assert plan.status.run is not None
    assert plan.status.run.attempt == 2


def test_a_deadline_ends_the_run() -> None:
    cluster = started("Train", compute={"gpus": 0, "activeDeadlineSeconds": 60})
    job = cluster.objects["Job", "travel-r1-train"]
    assert job["spec"]["activeDeadlineSeconds"] == 60
    text = "Job was active longer than specified deadline"
    entry = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": text}
    job["status"] = {"conditions": [{**entry, "lastTransitionTime": stamp(cluster.now)}]}
    cluster.pods.clear()
    failure = failure_of(cluster.plan().status)
    assert (failure.reason, failure.message, failure.waiting) == (Reason.DEADLINE_EXCEEDED, text, False)


def test_a_failed_job_waits_for_its_pods_last_words() -> None:
    cluster = started("Train")
    set_state(cluster.pods[-1], "Running", {"running": {}})
    cluster.execute(cluster.plan())
    job = cluster.objects["Job", "travel-r1-train"]
    entry = {
        "type": "Failed",
        "status": "True",
        "reason": "PodFailurePolicy",
        "message": "failed with exit code 12 matching",
    }
    job["status"] = {"conditions": [{**entry, "lastTransitionTime": stamp(cluster.now)}]}
    cluster.watched_only = True
    early = cluster.plan()
    assert (early.status, early.unread) == (cluster.job.status, True)
    cluster.watched_only = False  # they have been read, and say no more than before
    assert failure_of(cluster.plan().status).reason is Reason.LOSS_NOT_FINITE


def test_everything_fits_the_bounds_of_the_status() -> None:
    huge = failed_summary(Stage.TRAIN, Reason.SYSTEM_FAULT, "x" * 20_000, "y" * 20_000)
    cluster = Cluster(make_job(), answer=fail_in("Train", 10, huge)).run()
    status = cluster.job.status
    assert FineTuneJobStatus.model_validate_json(status.model_dump_json(by_alias=True)) == status


MEMORY = {"compute": {"gpus": 0, "resources": {"limits": {"memory": "64Gi"}}}}
CLAIM = {"output": {"claimName": "other"}}
SETTINGS = {"evaluation": {"maxExamples": 10}}


@pytest.mark.parametrize(
    ("stage", "change"), [("Train", MEMORY), ("Prepare", MEMORY), ("Prepare", CLAIM), ("Evaluate", SETTINGS)]
)
@pytest.mark.parametrize("restored", [False, True])
def test_the_advice_is_followed_also_when_the_failed_job_is_gone(
    stage: str, change: dict[str, Any], restored: bool
) -> None:
    """Somebody has deleted it, or the job was restored with its status and Kubernetes has collected its children."""
    cluster = Cluster(make_job(), answer=fail_in(stage, 137)).run()
    if restored:
        cluster = Cluster(make_job(uid="restored").model_copy(update={"status": cluster.job.status}))
    else:
        cluster.vanish("Job", f"travel-r1-{stage.lower()}")
    assert cluster.run().condition("Stalled") == ("True", "OutOfMemory")
    cluster.answer = succeed
    cluster.change(**change).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    run = cluster.job.status.run
    assert run is not None
    assert run.claim_name == cluster.job.spec.output.claim_name
    assert run.model is not None
    assert run.model.uri.startswith(f"pvc://{run.claim_name}/")
    made = {name for name in cluster.created if name.startswith("Job/")}
    assert len(made) == (3 if stage == "Prepare" or not restored else 2 if stage == "Train" else 1), made
    assert [(record.number, record.result) for record in cluster.job.status.runs] == [(1, "Promoted")]


@pytest.mark.parametrize(("stage", "change"), [("Train", MEMORY), ("Prepare", CLAIM), ("Evaluate", SETTINGS)])
@pytest.mark.parametrize("held", [False, True])
def test_a_pass_that_has_begun_the_stage_again_and_died_is_found_by_its_job(
    stage: str, change: dict[str, Any], held: bool
) -> None:
    """The status says failed, and there is a Job, which is of a later attempt."""
    cluster = Cluster(make_job(), answer=fail_in(stage, 137)).run()
    cluster.vanish("Job", f"travel-r1-{stage.lower()}")
    cluster.answer = succeed
    cluster.change(**change)
    cluster.execute(cluster.plan(), writes=len(cluster.plan().apply))
    assert ("Job", f"travel-r1-{stage.lower()}") in cluster.objects
    if held:
        cluster.change(suspend=True).run()
        assert cluster.condition("Suspended") == ("True", "Suspended")
        cluster.change(suspend=False)
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    run = cluster.job.status.run
    assert run is not None
    assert run.claim_name == cluster.job.spec.output.claim_name


def test_what_a_former_version_says_has_failed_stays_so_when_its_job_is_gone() -> None:
    cluster = Cluster(make_job(), answer=fail_in("Train", 137)).run()
    status = cluster.job.status.to_wire()
    status["run"]["failure"].pop("inputsHash")
    cluster.write_status(FineTuneJobStatus.model_validate(status))
    cluster.vanish("Job", "travel-r1-train")
    cluster.change(**MEMORY).run()
    assert cluster.condition("Stalled") == ("True", "OutOfMemory")


def test_an_event_of_a_long_story_ends_with_what_to_do() -> None:
    huge = failed_summary(Stage.TRAIN, Reason.SPEC_INVALID, "x" * 20_000)
    cluster = Cluster(make_job(), answer=fail_in("Train", 10, huge)).run()
    (told,) = (event for plan in cluster.plans for event in plan.events if event.reason == "Failed")
    assert told.message.endswith(f"x… {REASONS[Reason.SPEC_INVALID].advice}")
    assert len(told.message) < 1024
