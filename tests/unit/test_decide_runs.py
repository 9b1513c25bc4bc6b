"""Runs: what starts one, what it does to the one before, and what goes back to an earlier one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.simulator import START, Cluster, Manifest, good_summary, make_job, succeed

from finetune_api.conditions import FailureReason as Reason
from finetune_api.conditions import RunResult, Stage
from finetune_operator.settings import Settings

EPOCHS = {"epochs": 2}
STRICT = {"gate": {"rules": [{"metric": "loss", "max": "0.5"}]}}


def losing_after(run: int) -> Any:
    """Runs up to this one are better than the base, later ones worse."""

    def answer(pod: Manifest) -> tuple[int, str]:
        labels = pod["metadata"]["labels"]
        number, stage = int(labels["finetune-operator.io/run"]), labels["finetune-operator.io/stage"]
        if stage == "Evaluate" and number > run:
            return 0, good_summary(stage, number, tuned=3.0)
        return succeed(pod)

    return answer


def results(cluster: Cluster) -> list[tuple[int, RunResult]]:
    return [(record.number, record.result) for record in cluster.job.status.runs]


def endpoint_run(cluster: Cluster) -> int:
    assert cluster.job.status.endpoint is not None
    return cluster.job.status.endpoint.run


def number(cluster: Cluster) -> int:
    assert cluster.job.status.run is not None
    return cluster.job.status.run.number


def trained(cluster: Cluster) -> int:
    return sum(1 for name in cluster.created if name.endswith("-train"))


def test_run_two_trains_while_run_one_answers() -> None:
    cluster = Cluster(make_job()).run().change(hyperparameters=EPOCHS)
    answering: set[int] = set()

    def look(c: Cluster) -> bool:
        assert c.condition("Serving") == ("True", "Available")
        assert c.objects["Deployment", "travel-serve"]["status"]["availableReplicas"] == 1
        answering.add(endpoint_run(c))
        return False

    cluster.run(until=lambda c: look(c) or c.job.status.stage == Stage.TRAIN)
    assert answering == {1}
    assert cluster.condition("Ready") == ("False", "Training")
    assert "Run 1 keeps serving." in cluster.job.status.conditions[0].message
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.trigger == "SpecChanged"
    cluster.run(until=look)
    assert answering == {1, 2}
    assert cluster.condition("Ready") == ("True", "Serving")
    assert results(cluster) == [(1, RunResult.PROMOTED), (2, RunResult.PROMOTED)]


def test_the_old_run_is_reported_until_the_new_servers_are_all_there() -> None:
    cluster = Cluster(make_job()).run().change(hyperparameters=EPOCHS)
    cluster.run(until=lambda c: c.job.status.stage == Stage.SERVE and c.condition("Ready")[1] == "RollingOut")
    moves = cluster.moves()
    moves[0]()  # the new pod is there and not ready
    cluster.execute(cluster.plan())
    assert endpoint_run(cluster) == 1
    assert cluster.job.status.model is not None
    assert cluster.job.status.model.run == 1
    assert cluster.condition("Ready") == ("False", "RollingOut")
    assert cluster.condition("Serving") == ("True", "Available")
    cluster.run()
    assert endpoint_run(cluster) == 2


def test_a_run_that_fails_its_gate_leaves_the_old_one_serving() -> None:
    cluster = Cluster(make_job(), answer=losing_after(1)).run().change(hyperparameters=EPOCHS).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.condition("Promoted") == ("False", "GateFailed")
    assert cluster.condition("Stalled")[0] == "False"
    assert endpoint_run(cluster) == 1
    assert "Run 1 answers" in cluster.job.status.conditions[0].message
    assert "Run 2 did not pass its gate" in cluster.job.status.conditions[0].message
    assert results(cluster) == [(1, RunResult.PROMOTED), (2, RunResult.GATE_FAILED)]
    assert cluster.events()[-2:] == ["Evaluated", "GateFailed"]


def test_a_first_run_that_fails_its_gate_stalls() -> None:
    cluster = Cluster(make_job(), answer=losing_after(0)).run()
    assert cluster.condition("Ready") == ("False", "GateFailed")
    assert cluster.condition("Stalled") == ("True", "GateFailed")
    assert cluster.condition("Serving") == ("False", "NoModel")
    assert "Deployment/travel-serve" not in cluster.created
    assert cluster.job.status.stage == Stage.EVALUATE


def test_a_looser_gate_promotes_what_is_there() -> None:
    cluster = Cluster(make_job(), answer=losing_after(0)).run()
    cluster.change(evaluation={"gate": {"rules": []}}).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert results(cluster) == [(1, RunResult.PROMOTED)]
    assert trained(cluster) == 1


def test_a_stricter_gate_does_not_take_a_served_model_away() -> None:
    cluster = Cluster(make_job()).run().change(evaluation=STRICT).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.condition("Promoted") == ("True", "PromotedBefore")
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.gate is not None
    assert cluster.job.status.run.gate.verdict == "Failed"
    assert endpoint_run(cluster) == 1


def test_the_pin_brings_an_old_run_back_and_its_removal_the_new_one() -> None:
    cluster = Cluster(make_job()).run().change(hyperparameters=EPOCHS).run()
    cluster.change(serving={"run": 1}).run()
    assert endpoint_run(cluster) == 1
    assert cluster.condition("Ready") == ("True", "Serving")
    assert "serving.run" in cluster.job.status.conditions[0].message
    assert number(cluster) == 2
    cluster.change(serving=None).run()
    assert endpoint_run(cluster) == 2
    assert trained(cluster) == 2


def test_a_pin_may_serve_what_the_gate_refused() -> None:
    cluster = Cluster(make_job(), answer=losing_after(1)).run().change(hyperparameters=EPOCHS).run()
    cluster.change(serving={"run": 2}).run()
    assert endpoint_run(cluster) == 2
    assert cluster.condition("Promoted") == ("False", "GateFailed")


def test_a_pin_on_a_run_that_is_not_known_says_so_and_changes_nothing() -> None:
    cluster = Cluster(make_job()).run().change(serving={"run": 7}).run()
    assert cluster.condition("Ready") == ("False", "RunNotFound")
    assert cluster.condition("Stalled") == ("True", "RunNotFound")
    assert cluster.condition("Serving") == ("True", "Available")
    assert endpoint_run(cluster) == 1
    run = cluster.job.status.run
    assert run is not None
    assert run.failure is not None
    assert (run.failure.reason, run.failure.stage) == (Reason.RUN_NOT_FOUND, Stage.SERVE)
    cluster.change(serving=None).run()
    assert cluster.condition("Ready") == ("True", "Serving")


def test_a_wrong_pin_does_not_stop_the_training() -> None:
    cluster = Cluster(make_job(serving={"run": 7})).run()
    assert cluster.condition("Stalled") == ("True", "RunNotFound")
    assert cluster.condition("Promoted")[0] == "True"
    cluster.change(serving=None).run()
    assert endpoint_run(cluster) == 1


def test_a_pin_on_the_run_that_still_trains_waits_for_it() -> None:
    cluster = Cluster(make_job(serving={"run": 1})).run()
    assert cluster.condition("Ready") == ("True", "Serving")


def test_a_reverted_commit_brings_its_run_back_without_training() -> None:
    cluster = Cluster(make_job()).run().change(hyperparameters=EPOCHS).run()
    cluster.change(hyperparameters=None).run()
    assert number(cluster) == 1
    assert endpoint_run(cluster) == 1
    assert trained(cluster) == 2
    assert cluster.condition("Ready") == ("True", "Serving")
    cluster.change(hyperparameters=EPOCHS).run()
    assert (number(cluster), endpoint_run(cluster), trained(cluster)) == (2, 2, 2)
    cluster.change(hyperparameters={"epochs": 3}).run()
    assert (number(cluster), trained(cluster)) == (3, 3)


def test_taking_a_run_up_again_is_one_event_and_serving_another() -> None:
    cluster = Cluster(make_job()).run().change(hyperparameters=EPOCHS).run()
    before = len(cluster.events())
    cluster.change(hyperparameters=None).run()
    assert cluster.events()[before:] == ["RunStarted", "Serving"]


def test_a_revert_to_a_run_that_failed_its_gate_does_not_train_it_again() -> None:
    cluster = Cluster(make_job(), answer=losing_after(1)).run().change(hyperparameters=EPOCHS).run()
    cluster.change(hyperparameters=None).run().change(hyperparameters=EPOCHS).run()
    assert trained(cluster) == 2
    assert cluster.condition("Promoted") == ("False", "GateFailed")
    assert endpoint_run(cluster) == 1


def test_a_new_token_is_a_rerun() -> None:
    cluster = Cluster(make_job()).run().change(rerunToken="data-of-may").run()
    assert cluster.job.status.run is not None
    assert (number(cluster), cluster.job.status.run.trigger) == (2, "Rerun")


@pytest.mark.parametrize("token", [None, "may"])
@pytest.mark.parametrize("recorded", [True, False])
def test_why_a_run_began_is_told_from_its_inputs_and_not_from_a_snapshot_that_may_be_unreadable(
    token: str | None, recorded: bool
) -> None:
    cluster = Cluster(make_job(rerunToken=token)).run()
    config_map = cluster.objects["ConfigMap", "travel-r1"]
    config_map["data"] = {"run.json": "{}"}
    if not recorded:  # by an earlier version, which left the hash of the run alone
        config_map["metadata"]["annotations"].pop("finetune-operator.io/content-hash")
    cluster.change(rerunToken="june")
    cluster.execute(cluster.plan())
    assert cluster.job.status.run is not None
    known = recorded or token is None
    assert cluster.job.status.run.trigger == ("Rerun" if known else "SpecChanged")


@pytest.mark.parametrize(
    "change",
    [
        {"task": "Completion"},
        {"baseModel": {"source": "pvc://models/other"}},
        {"dataset": {"train": {"source": "pvc://data/x.jsonl"}}},
        {"method": {"rank": 4}},
        {"hyperparameters": EPOCHS},
    ],
)
def test_a_changed_input_is_no_rerun_whatever_the_token(change: dict[str, Any]) -> None:
    cluster = Cluster(make_job(rerunToken="may")).run().change(rerunToken="june", **change)
    cluster.execute(cluster.plan())
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.trigger == "SpecChanged"


def test_a_change_that_training_does_not_depend_on_starts_nothing() -> None:
    cluster = Cluster(make_job()).run()
    cluster.change(serving={"replicas": 3}, compute={"gpus": 0, "priorityClassName": "low"}).run()
    assert number(cluster) == 1
    assert trained(cluster) == 1
    assert cluster.objects["Deployment", "travel-serve"]["spec"]["replicas"] == 3


def test_an_unfinished_run_is_superseded_and_its_job_removed() -> None:
    cluster = Cluster(make_job())
    cluster.run(until=lambda c: c.job.status.stage == Stage.TRAIN and bool(c.pods))
    cluster.change(hyperparameters=EPOCHS)
    plan = cluster.plan()
    assert [(ref.kind, ref.name) for ref in plan.delete] == [("Job", "travel-r1-train")]
    assert [m["metadata"]["name"] for m in plan.apply] == ["travel-r2", "travel-r2-prepare"]
    cluster.run()
    assert results(cluster) == [(1, RunResult.SUPERSEDED), (2, RunResult.PROMOTED)]
    assert endpoint_run(cluster) == 2


def test_a_failed_run_leaves_the_old_one_serving() -> None:
    def answer(pod: Manifest) -> tuple[int, str]:
        return (12, "") if pod["metadata"]["name"].startswith("travel-r2-train") else succeed(pod)

    cluster = Cluster(make_job(), answer=answer).run().change(hyperparameters=EPOCHS).run()
    assert cluster.condition("Ready") == ("False", "LossNotFinite")
    assert cluster.condition("Serving") == ("True", "Available")
    assert "Run 1 keeps serving." in cluster.job.status.conditions[0].message
    assert endpoint_run(cluster) == 1
    assert results(cluster) == [(1, RunResult.PROMOTED), (2, RunResult.FAILED)]
    cluster.answer = succeed
    cluster.change(rerunToken="once-more").run()
    assert (number(cluster), endpoint_run(cluster)) == (3, 3)


def test_the_history_is_bounded_and_keeps_what_serves() -> None:
    cluster = Cluster(make_job(), Settings(run_history_limit=3), losing_after(1)).run()
    for token in ("a", "b", "c", "d", "e"):
        cluster.change(rerunToken=token).run()
    assert [number for number, _ in results(cluster)] == [1, 5, 6]
    assert endpoint_run(cluster) == 1
    assert sorted(name for kind, name in cluster.objects if kind == "ConfigMap") == [
        "travel-r1",
        "travel-r5",
        "travel-r6",
    ]
    assert not [name for kind, name in cluster.objects if kind == "Job" and "-r3-" in name]
    assert cluster.condition("Ready") == ("True", "Serving")


def edited(cluster: Cluster, times: int, seconds: float) -> Cluster:
    """Edits, so far apart; what can happen in between happens."""
    for epochs in range(2, 2 + times):
        cluster.change(hyperparameters={"epochs": epochs})
        until = cluster.now + timedelta(seconds=seconds)
        cluster.run(until=lambda c, end=until: c.now >= end)  # type: ignore[misc]
        cluster.now = max(cluster.now, until)
    return cluster


def test_ten_edits_within_a_minute_train_once() -> None:
    cluster = Cluster(make_job(), Settings(settle_seconds=30)).run()
    edited(cluster, 10, 6)
    assert cluster.condition("Reconciling") == ("True", "Settling")
    assert trained(cluster) == 1
    assert endpoint_run(cluster) == 1
    cluster.run()
    assert trained(cluster) == 2
    assert cluster.condition("Ready") == ("True", "Serving")
    assert endpoint_run(cluster) == 11
    assert 1 in [record.number for record in cluster.job.status.runs]


def test_a_first_run_and_one_that_nobody_edited_do_not_wait() -> None:
    cluster = Cluster(make_job(triggers={"schedule": {"cron": "0 * * * *"}}), Settings(settle_seconds=3600))
    cluster.run(until=lambda c: c.job.status.stage == Stage.TRAIN)
    assert cluster.now - START < timedelta(seconds=30)
    cluster.run()
    cluster.now = START + timedelta(hours=1)
    cluster.run(until=lambda c: trained(c) == 2, limit=20)


def test_a_clock_that_was_put_back_holds_no_training_up() -> None:
    cluster = Cluster(make_job(), Settings(settle_seconds=30)).run().change(hyperparameters=EPOCHS)
    cluster.execute(cluster.plan())
    cluster.now -= timedelta(days=1)
    cluster.run(until=lambda c: trained(c) == 2, limit=20)


def test_a_suspended_run_that_settles_is_suspended_and_says_so() -> None:
    cluster = Cluster(make_job(), Settings(settle_seconds=30)).run().change(hyperparameters=EPOCHS)
    cluster.run(until=lambda c: c.condition("Reconciling") == ("True", "Settling"))
    cluster.change(suspend=True).run()
    assert cluster.condition("Suspended") == ("True", "Suspended")


def test_superseded_runs_are_forgotten_before_those_that_were_measured() -> None:
    cluster = Cluster(make_job(), Settings(run_history_limit=3, settle_seconds=30)).run()
    cluster.change(hyperparameters=EPOCHS).run()
    edited(cluster, 5, 6)
    cluster.run()
    assert {1, 2} <= {record.number for record in cluster.job.status.runs}


@pytest.mark.parametrize(
    ("pinned", "words"),
    [
        (1, "run 1 is not in the history any more, which keeps no more runs (runHistoryLimit); there are [3, 4]"),
        (9, "run 9 has not begun, the newest is 4; there are [3, 4]"),
    ],
)
def test_a_pin_on_a_run_that_is_not_known_says_why(pinned: int, words: str) -> None:
    cluster = Cluster(make_job(), Settings(run_history_limit=2)).run()
    for token in "bcd":
        cluster.change(rerunToken=token).run()
    cluster.change(serving={"run": pinned}).run()
    run = cluster.job.status.run
    assert run is not None
    assert run.failure is not None
    assert words in run.failure.message
