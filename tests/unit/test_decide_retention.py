"""What of finished runs is removed: by count and age, never what somebody needs, and told before it is done."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.simulator import Cluster, Manifest, make_job, succeed
from tests.unit.test_decide_runs import losing_after

from finetune_api.status import RunRecord, RunStatus
from finetune_operator import names
from finetune_operator.builders.removal_job import order_of
from finetune_operator.decide import decide
from finetune_operator.settings import Settings

JOB = ("Job", "travel-remove")


def output(**retention: Any) -> dict[str, Any]:
    return {"output": {"claimName": "models", "retention": {"checkpoints": "Keep", **retention}}}


def after(runs: int, *, answer: Any = succeed, settings: Settings | None = None, **spec: Any) -> Cluster:
    """A job that has had so many runs, its Remove pods succeeding as all others."""

    def says(pod: Manifest) -> tuple[int, str]:
        removes = pod["metadata"]["labels"]["finetune-operator.io/stage"] == "Remove"
        return (0, '{"ok": true}') if removes else answer(pod)

    cluster = Cluster(make_job(rerunToken="run-1", **spec), settings, answer=says).run()
    for number in range(2, runs + 1):
        cluster.change(rerunToken=f"run-{number}").run()
    return cluster


def record(cluster: Cluster, number: int) -> RunRecord:
    return next(each for each in cluster.job.status.runs if each.number == number)


def states(cluster: Cluster) -> dict[int, str]:
    return {each.number: each.files.state.value for each in cluster.job.status.runs if each.files}


def told(cluster: Cluster) -> list[tuple[int, bool]]:
    order = order_of(cluster.objects[JOB])
    assert order is not None
    return [(removal.run, removal.checkpoints_only) for removal in order.removals]


def test_without_a_rule_nothing_is_removed_and_nothing_said() -> None:
    cluster = after(3)
    assert "Job/travel-remove" not in cluster.created
    assert states(cluster) == {}


def test_older_runs_go_by_count_and_the_rest_says_why_it_stays() -> None:
    cluster = after(4, **output(keepRuns=2))
    assert states(cluster) == {1: "Removed", 2: "Removed", 3: "Kept", 4: "Kept"}
    assert [record(cluster, number).model is None for number in (1, 2, 3, 4)] == [True, True, False, False]
    files = record(cluster, 3).files
    assert files is not None
    assert files.message == "kept until 1 more runs have made a model"
    newest = record(cluster, 4).files
    assert newest is not None
    assert newest.message == "kept, because it is in service"
    assert JOB not in cluster.objects, "the Job goes when its result is known"
    assert cluster.plan().status == cluster.job.status
    assert cluster.plan().apply == ()


def test_it_is_decided_in_the_status_before_any_pod_is_made() -> None:
    cluster = after(3).change(**output(keepRuns=1))
    cluster.execute(cluster.plan())
    assert states(cluster) == {1: "Removing", 2: "Removing", 3: "Kept"}
    assert record(cluster, 1).model is None
    assert JOB not in cluster.objects
    cluster.change(serving={"run": 1})  # too late: it is refused by name, not served from half a folder
    cluster.execute(cluster.plan())
    assert cluster.condition("Stalled") == ("True", "RunNotFound")
    assert told(cluster) == [(1, False), (2, False)]


def test_the_job_names_exact_folders_of_the_job_and_carries_no_run() -> None:
    cluster = after(2).change(**output(keepRuns=1))
    cluster.run(until=lambda c: JOB in c.objects)
    made = cluster.objects[JOB]
    [env] = [
        each for each in made["spec"]["template"]["spec"]["containers"][0]["env"] if each["name"] == "FINETUNE_REMOVE"
    ]
    folder = f"1-{record(cluster, 1).hash[:8]}"
    assert json.loads(env["value"]) == {"runs": "team-a/travel/runs", "removals": [{"run": 1, "folder": folder}]}
    assert names.label(made, names.LABEL_RUN) is None
    assert not made["spec"]["template"]["spec"]["automountServiceAccountToken"]


@pytest.mark.parametrize("days", [30, 1])
def test_older_runs_go_by_age(days: int) -> None:
    cluster = after(2, **output(maxAgeDays=days))
    files = record(cluster, 1).files
    assert files is not None
    assert files.until is not None
    assert files.until in files.message
    cluster.now += timedelta(days=days, seconds=1)
    assert states(cluster.run()) == {1: "Removed", 2: "Kept"}, "the run in service has no age"


def test_what_is_pinned_stays_until_it_is_not_pinned() -> None:
    cluster = after(1, serving={"run": 1}, **output(keepRuns=1))
    cluster.change(rerunToken="run-2").run().change(rerunToken="run-3").run()
    assert states(cluster) == {1: "Kept", 2: "Removed", 3: "Kept"}
    assert cluster.condition("Ready") == ("True", "Serving")
    cluster.change(serving={}).run()
    assert states(cluster) == {1: "Removed", 2: "Removed", 3: "Kept"}


def test_the_run_in_service_stays_however_many_fail_after_it() -> None:
    cluster = after(4, answer=losing_after(1), **output(keepRuns=1))
    assert states(cluster) == {1: "Kept", 2: "Removed", 3: "Removed", 4: "Kept"}
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.run == 1


def test_the_newest_that_waits_for_approval_stays() -> None:
    cluster = after(3, promotion={"mode": "Manual"}, answer=losing_after(2), **output(keepRuns=1))
    assert states(cluster) == {1: "Removed", 2: "Kept", 3: "Kept"}
    assert [each.result for each in cluster.job.status.runs][1:] == ["AwaitingApproval", "GateFailed"]


def test_runs_that_nobody_approves_are_removed_in_their_turn_and_never_push_out_what_serves() -> None:
    cluster = after(1, **output(keepRuns=3)).change(promotion={"mode": "Manual"}).run()
    for number in range(2, 25):
        cluster.change(rerunToken=f"run-{number}").run()
    kept = [number for number, state in states(cluster).items() if state == "Kept"]
    assert kept == [1, 22, 23, 24]
    assert record(cluster, 1).result == "Promoted"
    removed = cluster.created.count("Job/travel-remove")
    assert removed == 20, "the files of each of the others are gone"


def test_what_made_no_model_removes_none() -> None:
    cluster = after(3, **output(keepRuns=3))
    cluster.answer = lambda pod: (10, "the source is away")
    for number in range(4, 20):
        cluster.change(rerunToken=f"run-{number}").run()
    assert [states(cluster)[number] for number in (1, 2, 3)] == ["Kept"] * 3
    assert [record(cluster, number).result for number in (1, 2, 3)] == ["Promoted"] * 3
    assert record(cluster, 19).result == "Failed"


def test_a_pin_on_what_was_removed_says_where_it_went() -> None:
    cluster = after(2, **output(keepRuns=1)).change(serving={"run": 1}).run()
    assert cluster.condition("Stalled") == ("True", "RunNotFound")
    run = cluster.job.status.run
    assert run is not None
    assert run.failure is not None
    assert "run 1 is no more: its files were removed by output.retention; there are [2]" in run.failure.message
    assert "going back to the commit of that run trains it anew" in run.failure.advice
    assert cluster.condition("Serving") == ("True", "Available")


def test_what_another_job_goes_on_from_stays() -> None:
    cluster = after(1)
    other = make_job("other", baseModel={"fineTuneJob": {"name": "travel", "run": 1}})
    cluster.others["other"] = other
    cluster.change(rerunToken="run-2", **output(keepRuns=1)).run().change(rerunToken="run-3").run()
    assert states(cluster) == {1: "Kept", 2: "Removed", 3: "Kept"}
    files = record(cluster, 1).files
    assert files is not None
    assert files.message == "kept, because other goes on from it"
    del cluster.others["other"]
    assert states(cluster.run()) == {1: "Removed", 2: "Removed", 3: "Kept"}


def test_a_run_from_which_another_job_has_begun_stays() -> None:
    cluster = after(1)
    model = record(cluster, 1).model
    begun = make_job("other", baseModel={"fineTuneJob": {"name": "travel"}})
    run = RunStatus.model_validate(
        {
            "number": 1,
            "hash": "x",
            "trigger": "Created",
            "continuedFrom": {"job": "travel", "mode": "Stack", "model": model},
        }
    )
    cluster.others["other"] = begun.model_copy(update={"status": begun.status.model_copy(update={"run": run})})
    cluster.change(rerunToken="run-2", **output(keepRuns=1)).run()
    assert states(cluster) == {1: "Kept", 2: "Kept"}


def test_a_job_that_cannot_be_read_may_need_any_run() -> None:
    cluster = after(2).change(**output(keepRuns=1))
    seen = replace(cluster.observed(), dependents=(None,))
    status = decide(cluster.job, seen, cluster.now, cluster.settings).status
    assert [each.files.state.value for each in status.runs if each.files] == ["Kept", "Kept"]


def test_checkpoints_of_finished_runs_go_and_the_models_stay() -> None:
    cluster = after(2, output={"claimName": "models", "retention": {}})
    for number in (1, 2):
        files = record(cluster, number).files
        assert files is not None
        assert (files.state.value, files.checkpoints) == ("Kept", "Removed")
        assert record(cluster, number).model is not None
    assert cluster.created.count("Job/travel-remove") == 2, "once a run"


def test_checkpoints_of_a_training_that_failed_stay_as_long_as_it_is_the_present_run() -> None:
    def fails(pod: Manifest) -> tuple[int, str]:
        stage = pod["metadata"]["labels"]["finetune-operator.io/stage"]
        return (12, "") if stage == "Train" else succeed(pod)

    cluster = after(1, answer=fails, output={"claimName": "models", "retention": {}})
    assert "Job/travel-remove" not in cluster.created
    cluster.change(rerunToken="run-2").run()
    files = record(cluster, 1).files
    assert files is not None
    assert files.checkpoints == "Removed"


def test_a_run_that_the_history_forgets_loses_its_files_first() -> None:
    cluster = after(4, settings=Settings(run_history_limit=2), **output(maxAgeDays=365))
    assert [each.number for each in cluster.job.status.runs] == [3, 4]
    assert cluster.created.count("Job/travel-remove") == 2


def test_a_removal_that_fails_is_told_and_tried_again_after_an_hour() -> None:
    fate = {"code": 10}

    def says(pod: Manifest) -> tuple[int, str]:
        removes = pod["metadata"]["labels"]["finetune-operator.io/stage"] == "Remove"
        return (fate["code"], "it is no folder") if removes else succeed(pod)

    cluster = Cluster(make_job(**output(keepRuns=1)), answer=says).run().change(rerunToken="b")
    cluster.run(until=lambda c: states(c).get(1) == "RemovalFailed")
    files = record(cluster, 1).files
    assert files is not None
    assert "it is no folder" in files.message
    assert cluster.condition("Ready") == ("True", "Serving")
    plan = cluster.plan()
    assert plan.requeue_after is not None
    assert 3500 < plan.requeue_after <= 3600
    assert plan.delete == ()
    fate["code"] = 0
    cluster.now += timedelta(hours=1)
    assert states(cluster.run()) == {1: "Removed", 2: "Kept"}


def test_a_rule_that_is_taken_back_stops_what_was_not_decided() -> None:
    cluster = after(3, **output(keepRuns=2)).change(output={"claimName": "models"}).run()
    assert states(cluster) == {1: "Removed"}
    cluster.change(rerunToken="more").run()
    assert states(cluster) == {1: "Removed"}


def test_runs_on_two_claims_are_removed_one_after_the_other() -> None:
    cluster = after(1).change(rerunToken="b", output={"claimName": "other"}).run()
    cluster.change(rerunToken="c").run()
    cluster.change(**output(keepRuns=1)).run()
    assert states(cluster) == {1: "Removed", 2: "Removed", 3: "Kept"}
    assert cluster.created.count("Job/travel-remove") == 2


def test_going_back_to_the_commit_of_a_removed_run_trains_anew() -> None:
    cluster = after(2, **output(keepRuns=1)).change(rerunToken="run-1").run()
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.number == 3
    assert cluster.condition("Ready") == ("True", "Serving")


def test_a_pass_that_is_cut_short_after_any_write_ends_in_the_same_place() -> None:
    for writes in range(5):
        cluster = after(2).change(**output(keepRuns=1))
        for _ in range(3):
            cluster.execute(cluster.plan(), writes)
        assert states(cluster.run()) == {1: "Removed", 2: "Kept"}, writes
