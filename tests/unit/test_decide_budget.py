"""spec.budget and status.run.cost: counted from what pods say, stopped with the checkpoint, resumed when raised."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from tests.simulator import Cluster, Manifest, good_summary, make_job, set_state, stamp, succeed

from finetune_api.conditions import FailureReason, RunResult, Stage
from finetune_api.cost import CostStatus
from finetune_api.job import run_hash
from finetune_api.reports import StageFailure, Summary
from finetune_api.status import Checkpoint, Estimate, Progress, RunStatus
from finetune_operator.metering import STALE_SECONDS
from finetune_operator.plan import ProgressReport
from finetune_operator.prices import Prices
from finetune_operator.settings import Settings

GPU = {"gpus": 2}
PRICED = Settings(prices=Prices("EUR", {"default": Decimal("3.60")}))
TRAIN = "travel-r1-train"


def expects(seconds: int) -> Any:
    """Pods that end well; Prepare estimates so many seconds of training."""

    def answer(pod: Manifest) -> tuple[int, str]:
        code, message = succeed(pod)
        summary = Summary.model_validate_json(message)
        if summary.stage is Stage.PREPARE:
            summary = summary.model_copy(update={"estimate": Estimate(memory_bytes=1, train_seconds=seconds)})
        return code, summary.to_message()

    return answer


def training(settings: Settings = PRICED, seconds: int = 0, **spec: Any) -> Cluster:
    """A cluster in which the training runs since a moment ago."""
    cluster = Cluster(make_job(**{"compute": GPU, **spec}), settings, answer=expects(seconds))

    def trains(cluster: Cluster) -> bool:
        pods = cluster.pods_of(cluster.objects["Job", TRAIN]) if ("Job", TRAIN) in cluster.objects else []
        return bool(pods) and pods[-1]["status"]["phase"] == "Running"

    return cluster.run(until=trains)


def run_of(cluster: Cluster) -> RunStatus:
    assert cluster.job.status.run is not None
    return cluster.job.status.run


def cost_of(cluster: Cluster) -> CostStatus:
    cost = run_of(cluster).cost
    assert cost is not None
    return cost


def look(cluster: Cluster, seconds: int = 0) -> Cluster:
    cluster.now += timedelta(seconds=seconds)
    cluster.execute(cluster.plan())
    return cluster


def end_training(cluster: Cluster, step: int) -> None:
    """The pod has heard the stop and saved."""
    words = Summary(
        stage=Stage.TRAIN,
        ok=False,
        run=1,
        failure=StageFailure(reason=FailureReason.INTERRUPTED, message="asked to stop"),
        checkpoint=Checkpoint(step=step),
    )
    pod = cluster.pods_of(cluster.objects["Job", TRAIN])[-1]
    ended = {"exitCode": 75, "message": words.to_message(), "finishedAt": stamp(cluster.now)}
    set_state(pod, "Failed", {"terminated": ended})


def evaluate_env(cluster: Cluster) -> list[dict[str, str]]:
    job = cluster.objects["Job", "travel-r1-evaluate"]
    env: list[dict[str, str]] = job["spec"]["template"]["spec"]["containers"][0]["env"]
    return env


def test_a_run_that_has_used_its_budget_saves_and_goes_on_when_it_is_raised() -> None:
    cluster = training(budget={"maxGpuHours": 2})
    assert cost_of(cluster).gpus == 2
    due = cluster.plan().requeue_after
    assert due is not None
    assert 3590 <= due <= 3600, "two GPUs use two hours within one"
    look(cluster, int(due) - 1)
    assert not cluster.objects["Job", TRAIN]["metadata"].get("deletionTimestamp")
    look(cluster, 1)
    assert cluster.objects["Job", TRAIN]["metadata"]["deletionTimestamp"]
    assert cluster.condition("Reconciling") == ("True", "BudgetExceeded")
    cluster.now += timedelta(seconds=9)
    end_training(cluster, 70)
    look(cluster)
    cluster.run()
    assert cluster.condition("Stalled") == ("True", "BudgetExceeded")
    assert cluster.condition("WithinBudget") == ("False", "BudgetExceeded")
    assert cost_of(cluster).gpus == 0
    assert cost_of(cluster).gpu_seconds == 2 * (3600 + 9)
    failure = run_of(cluster).failure
    assert failure is not None
    assert failure.message == "2.01 GPU hours are used; budget.maxGpuHours is 2."
    assert "from the checkpoint of step 70" in failure.advice
    assert cluster.job.status.runs == [], "the run is held, not ended"
    assert cluster.events().count("BudgetExceeded") == 1

    look(cluster, 100_000)
    assert cost_of(cluster).gpu_seconds == 2 * (3600 + 9), "nothing is held, nothing is counted"
    assert (cluster.plan().apply, cluster.plan().delete) == ((), ())
    hash_before = run_hash(cluster.job.spec)
    cluster.change(budget={"maxGpuHours": 3}).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.condition("WithinBudget") == ("True", "WithinBudget")
    assert run_hash(cluster.job.spec) == hash_before
    assert run_of(cluster).number == 1
    assert cost_of(cluster).gpu_seconds > 2 * (3600 + 9), "attempts add up"
    assert cluster.created.count(f"Job/{TRAIN}") == 2
    assert cluster.job.status.runs[0].cost == cost_of(cluster)
    assert cluster.events().count("Resumed") == 1
    trained = cost_of(cluster).training
    assert trained is not None
    assert Decimal(trained.gpu_hours) <= Decimal(cost_of(cluster).gpu_hours)
    told = json.loads(next(e["value"] for e in evaluate_env(cluster) if e["name"] == "FINETUNE_COST"))
    assert told == trained.to_wire(), "the report tells it"


def test_money_is_what_the_hours_cost() -> None:
    cluster = training(budget={"maxCost": "3.60"})
    due = cluster.plan().requeue_after
    assert due is not None
    assert 1790 <= due <= 1800
    look(cluster, int(due))
    assert cluster.condition("Reconciling") == ("True", "BudgetExceeded")
    cluster.run()
    failure = run_of(cluster).failure
    assert failure is not None
    assert failure.message.startswith("3.6")
    assert failure.message.endswith("EUR are spent; budget.maxCost is 3.60.")
    assert cluster.change(budget=None).run().condition("Ready") == ("True", "Serving")
    assert "WithinBudget" not in [each.type for each in cluster.job.status.conditions]


def test_a_training_that_is_estimated_above_the_budget_takes_no_gpu() -> None:
    cluster = Cluster(make_job(compute=GPU, budget={"maxGpuHours": 1}), PRICED, answer=expects(7200)).run()
    assert ("Job", TRAIN) not in cluster.objects
    assert cluster.condition("Stalled") == ("True", "BudgetExceeded")
    failure = run_of(cluster).failure
    assert failure is not None
    assert failure.message == "The training is estimated at 4.00 GPU hours; budget.maxGpuHours is 1. No GPU was taken."
    assert "Raise budget.maxGpuHours to 4.00" in failure.advice
    estimate = cost_of(cluster).estimate
    assert estimate is not None
    assert (estimate.gpu_hours, estimate.amount, estimate.currency) == ("4.00", "14.40", "EUR")
    cluster.change(budget={"maxGpuHours": "4"}).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cost_of(cluster).estimate == estimate, "it stays beside what was used"


def test_a_training_that_has_begun_is_stopped_by_what_it_used_not_by_its_estimate() -> None:
    cluster = training(seconds=7200)
    cluster.change(budget={"maxGpuHours": 1}).run()
    assert cluster.condition("Ready") == ("True", "Serving")


def test_the_server_is_not_the_runs() -> None:
    cluster = training()
    cluster.run()
    before = cost_of(cluster)
    pod = next(pod for pod in cluster.pods if pod["metadata"]["name"].startswith(TRAIN))
    labels = {**pod["metadata"]["labels"], "finetune-operator.io/stage": "Serve"}
    server = {**pod, "metadata": {**pod["metadata"], "name": "server", "labels": labels}, "status": {}}
    set_state(server, "Running", {"running": {"startedAt": stamp(cluster.now)}})
    cluster.pods.append(server)
    assert cost_of(look(cluster, 3600)) == before


def test_fewer_gpus_may_bring_the_estimate_within_the_budget() -> None:
    cluster = Cluster(make_job(compute=GPU, budget={"maxCost": "8"}), PRICED, answer=expects(7200)).run()
    assert cluster.condition("Stalled") == ("True", "BudgetExceeded")
    assert cluster.change(compute={"gpus": 1}).run().condition("Ready") == ("True", "Serving")


def test_a_bound_in_money_without_prices_is_refused_before_anything_is_made() -> None:
    cluster = Cluster(make_job(compute=GPU, budget={"maxCost": 5})).run()
    assert cluster.objects == {}
    assert cluster.condition("Stalled") == ("True", "PriceMissing")
    assert cluster.condition("WithinBudget") == ("False", "PriceMissing")
    cluster.settings = PRICED
    assert cluster.run().condition("Ready") == ("True", "Serving")


def test_money_is_not_guessed_for_gpus_that_a_queue_chose_and_that_have_no_price() -> None:
    """The spec's own GPUs have a price; those of the flavor that Kueue wrote into the pods have none."""
    prices = Prices("EUR", {"H100": Decimal(4)})
    spec: dict[str, Any] = {"compute": {**GPU, "nodeSelector": {"gpu": "H100"}}, "budget": {"maxCost": 100}}
    cluster = training(Settings(prices=prices), **spec)
    cluster.pods[-1]["spec"]["nodeSelector"] = {"gpu": "A100"}
    look(cluster, 1800)
    assert cluster.condition("Reconciling") == ("True", "PriceMissing")
    cluster.run()
    assert cluster.condition("Stalled") == ("True", "PriceMissing")


def admitted(flavor: dict[str, str], prices: dict[str, Decimal], seconds: int = 0, **spec: Any) -> Cluster:
    """A training that a queue has let go onto the nodes of this flavor, as Kueue does: by the Job's template."""
    job = make_job(compute={**GPU, "queueName": "team"}, **spec)
    cluster = Cluster(job, Settings(prices=Prices("EUR", prices)), answer=expects(seconds))
    cluster.run(until=lambda cluster: ("Job", TRAIN) in cluster.objects)
    train = cluster.objects["Job", TRAIN]
    train["spec"]["template"]["spec"]["nodeSelector"] = flavor
    cluster.suspend(train, suspended=False)
    cluster.step_pod(cluster.start_pod(train))
    return look(cluster)


def test_the_estimate_has_the_price_of_the_gpus_that_a_queue_chose() -> None:
    cluster = admitted({"gpu": "H100"}, {"default": Decimal("3.60"), "H100": Decimal(36)}, 1800)
    estimate = cost_of(cluster).estimate
    assert estimate is not None
    assert (estimate.gpu_hours, estimate.amount) == ("1.00", "36.00")
    assert not cluster.plan().events
    assert cluster.plan().status == cluster.job.status
    cluster.suspend(cluster.objects["Job", TRAIN], suspended=True)  # evicted: nobody knows where it goes next
    assert cost_of(look(cluster)).estimate == estimate


def test_the_budget_is_looked_at_again_when_the_gpus_that_a_queue_chose_have_used_it_up() -> None:
    """Nothing is metered yet that would tell their price."""
    cluster = admitted({"gpu": "H100"}, {"default": Decimal("3.60"), "H100": Decimal(36)}, budget={"maxCost": "36"})
    due = cluster.plan().requeue_after
    assert due is not None
    assert 1790 <= due <= 1800, "two GPUs, each of 36 an hour"


@pytest.mark.parametrize(("flavor", "end"), [("H100", "BudgetExceeded"), ("A100", "PriceMissing")])
def test_a_queue_may_choose_gpus_that_have_a_price_where_the_job_selects_none(flavor: str, end: str) -> None:
    cluster = admitted({"gpu": flavor}, {"H100": Decimal(36)}, budget={"maxCost": "36"})
    look(cluster, 1800)
    assert cluster.condition("Reconciling") == ("True", end)


@pytest.mark.parametrize("row", ["default", "nvidia.com/gpu", "H100"])
def test_a_run_that_is_held_for_want_of_a_price_goes_on_when_there_is_one(row: str) -> None:
    """Nothing is held by then, and nothing more is used."""
    spec: dict[str, Any] = {"compute": {**GPU, "nodeSelector": {"gpu": "H100"}}}
    cluster = look(training(Settings(), **spec), 1800)
    cluster.settings = Settings(prices=Prices("EUR", {"other": Decimal(1)}))
    cluster.change(budget={"maxCost": 100}).run()
    assert cluster.condition("Stalled") == ("True", "PriceMissing")
    used = cost_of(cluster).gpu_seconds
    assert used >= 3600
    cluster.settings = Settings(prices=Prices("EUR", {row: Decimal(4)}))
    look(cluster)
    assert cost_of(cluster).spent("EUR") == used * Decimal(4) / 3600
    assert cluster.run().condition("Ready") == ("True", "Serving")


@pytest.mark.parametrize(("waiting", "counted"), [(True, 3600), (False, 0)], ids=["it still waits", "it was let go"])
def test_hours_in_a_queue_are_nobodys_also_when_the_operator_was_away(waiting: bool, counted: int) -> None:
    """While it waits, its Job says since when; afterwards nobody can tell how long it trained unseen."""
    cluster = training()
    job, known = cluster.objects["Job", TRAIN], cost_of(cluster).gpu_seconds
    cluster.now += timedelta(seconds=1800)
    cluster.suspend(job, suspended=True)
    cluster.now += timedelta(hours=5)
    if waiting:
        look(cluster)
        cluster.now += timedelta(hours=5)
    cluster.suspend(job, suspended=False)
    cluster.step_pod(cluster.start_pod(job))
    look(cluster, 1000)
    assert cost_of(cluster).gpu_seconds == known + counted + 2 * 1000
    assert cost_of(cluster).gpus == 2


def test_no_status_is_written_for_a_meter_that_only_goes_on() -> None:
    cluster = training()
    before = cluster.job.status
    cluster.now += timedelta(seconds=STALE_SECONDS - 60)
    assert cluster.plan().status == before
    report = ProgressReport(run=1, progress=Progress(percent=10, step=4, total_steps=40))
    cluster.progress = report
    assert cost_of(look(cluster)).gpu_seconds > 2 * (STALE_SECONDS - 70), "with what is written anyway it is told"
    cluster.now += timedelta(seconds=STALE_SECONDS)
    assert cluster.plan().status != cluster.job.status, "and at least each quarter of an hour"


def test_all_nodes_and_the_measurement_count_and_prepare_and_servers_do_not() -> None:
    cluster = Cluster(make_job(compute={"gpus": 2, "nodes": 3}), PRICED).run()
    held = 0
    for pod in cluster.pods:
        stage = pod["metadata"]["labels"]["finetune-operator.io/stage"]
        state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        began, ended = (datetime.fromisoformat(time) for time in (pod["status"]["startTime"], state["finishedAt"]))
        held += {"Train": 2, "Evaluate": 1}.get(stage, 0) * int((ended - began).total_seconds())
    counted = cost_of(cluster)
    assert (counted.gpu_seconds, counted.gpus) == (held, 0)
    look(cluster, 100_000)
    assert cost_of(cluster) == counted, "a server is not the run's"


def test_a_job_without_gpus_says_nothing_of_cost() -> None:
    cluster = Cluster(make_job(), PRICED).run()
    assert run_of(cluster).cost is None


def test_a_superseded_run_is_charged_until_its_pod_is_gone() -> None:
    cluster = training()
    look(cluster, 600)
    pods = [pod for pod in cluster.pods if pod["status"]["phase"] == "Running"]
    look(cluster.change(rerunToken="again"))
    (record,) = cluster.job.status.runs
    assert record.result is RunResult.SUPERSEDED
    assert record.cost is not None
    before = record.cost.gpu_seconds
    assert before >= 2 * 600
    cluster.now += timedelta(seconds=40)
    ended = {"exitCode": 75, "message": "", "finishedAt": stamp(cluster.now)}
    set_state(pods[0], "Failed", {"terminated": ended})
    cost = look(cluster).job.status.runs[0].cost
    assert cost is not None
    assert cost.gpu_seconds == before + 2 * 40
    cluster.run()
    assert cluster.job.status.runs[0].cost is not None
    assert cluster.job.status.runs[0].cost.gpus == 0


def test_pods_of_a_deleted_job_of_the_same_name_are_not_charged() -> None:
    cluster = training()
    left = {**cluster.pods[-1], "status": {**cluster.pods[-1]["status"], "startTime": "2025-12-31T00:00:00Z"}}
    left["metadata"] = {**left["metadata"], "creationTimestamp": "2025-12-31T00:00:00Z", "name": "left"}
    cluster.former = [left]
    look(cluster, 60)
    assert cluster.plan().status.run is not None
    assert cost_of(cluster).gpus == 2


def test_the_operator_is_away_while_the_training_is_tried_again() -> None:
    """Everything happens between two looks, and is read from the pods."""
    cluster = training()
    job = cluster.objects["Job", TRAIN]
    cluster.answer = lambda pod: (1, "a fault") if len(cluster.pods_of(job)) == 1 else (0, good_summary("Train", 1))
    began = cost_of(cluster).gpu_seconds
    for seconds, move in ((500, 0), (0, 0), (30, 0), (700, 0), (0, 0)):
        cluster.now += timedelta(seconds=seconds)
        cluster.moves()[move]()
    cluster.now += timedelta(hours=5)
    look(cluster)
    assert len(cluster.pods_of(job)) == 2
    assert cost_of(cluster).gpu_seconds - began == 2 * (500 + 700)


@pytest.mark.parametrize("writes", range(3))
def test_a_crash_while_it_is_stopped_ends_the_same_way(writes: int) -> None:
    cluster = training(budget={"maxGpuHours": 1})
    cluster.now += timedelta(hours=1)
    cluster.execute(cluster.plan(), writes)
    cluster.run()
    assert cluster.condition("Stalled") == ("True", "BudgetExceeded")
    assert cluster.change(budget={"maxGpuHours": 9}).run().condition("Ready") == ("True", "Serving")
    assert cluster.created.count(f"Job/{TRAIN}") == 2


def test_suspend_has_its_own_words_and_the_budget_is_told_all_the_same() -> None:
    cluster = training(budget={"maxGpuHours": 1})
    cluster.now += timedelta(hours=1)
    cluster.change(suspend=True).run()
    assert cluster.condition("Ready") == ("False", "Suspended")
    assert cluster.condition("WithinBudget") == ("False", "BudgetExceeded")
    cluster.change(suspend=False).run()
    assert cluster.condition("Stalled") == ("True", "BudgetExceeded")


def test_a_run_that_is_done_is_not_undone_by_a_lower_budget() -> None:
    cluster = training(budget={"maxGpuHours": 100}).run()
    cluster.change(budget={"maxGpuHours": "0.000001"}).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.condition("WithinBudget") == ("False", "BudgetExceeded")
