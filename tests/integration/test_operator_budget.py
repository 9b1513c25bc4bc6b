"""A budget on a real API server with its controllers: each look is by an operator that has just started."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tests.cluster.control_plane import ControlPlane
from tests.operator_process import (
    GROUP,
    PATIENCE,
    Kubelet,
    children,
    condition,
    job_manifest,
    make_namespace,
    status_of,
)
from tests.simulator import good_summary
from tests.single_life import look

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import StageFailure, Summary
from finetune_api.status import Checkpoint, Estimate
from finetune_operator.prices import Prices
from finetune_operator.settings import Settings

PRICED = Settings(prices=Prices("EUR", {"default": Decimal("2.50")}))
TRAIN = f"{GROUP}/job=travel,{GROUP}/stage=Train"
HOUR = timedelta(hours=1)


def look_later(plane: ControlPlane, namespace: str, later: timedelta = timedelta(), settings: Settings = PRICED) -> int:
    """An operator that has just started passes over the job. Its clock is ahead of the cluster's by `later`."""
    return look(plane, namespace, settings=settings, clock=lambda: datetime.now(UTC) + later)


def until(plane: ControlPlane, namespace: str, wanted: Callable[[], bool], later: timedelta = timedelta()) -> None:
    """Looks again and again: what the controllers do takes its time."""

    def seen() -> bool:
        look_later(plane, namespace, later)
        return wanted()

    plane.kubectl.wait_until(seen, PATIENCE, "what the operator decides", namespace)


def prepare_ends(plane: ControlPlane, namespace: str, seconds: int) -> None:
    """Prepare estimates so many seconds of training."""
    look_later(plane, namespace)
    summary = Summary.model_validate_json(good_summary("Prepare", 1))
    summary = summary.model_copy(update={"estimate": Estimate(train_seconds=seconds)})
    Kubelet(plane, namespace).end(f"{GROUP}/job=travel,{GROUP}/stage=Prepare", summary.to_message())
    done = ("wait", "--for=condition=Complete", "job/travel-r1-prepare", "--timeout=60s")
    plane.kubectl(*done, namespace=namespace)


def cost_of(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = status_of(plane, namespace, "travel")["run"]["cost"]
    return found


def seconds_of(plane: ControlPlane, namespace: str) -> int:
    return sum(use["gpuSeconds"] for use in cost_of(plane, namespace)["usage"])


def is_(plane: ControlPlane, namespace: str, kind: str, wanted: tuple[str, str]) -> Callable[[], bool]:
    return lambda: condition(status_of(plane, namespace, "travel"), kind) == wanted


def set_budget(plane: ControlPlane, namespace: str, budget: dict[str, Any]) -> None:
    patch = json.dumps({"spec": {"budget": budget}})
    plane.kubectl("patch", "finetunejob", "travel", "--type=merge", "-p", patch, namespace=namespace)


def test_a_run_passes_its_budget_is_held_and_goes_on_when_it_is_raised(plane: ControlPlane) -> None:
    namespace = make_namespace(plane, "budget")
    kubelet = Kubelet(plane, namespace)
    plane.kubectl.apply(job_manifest("travel", namespace, compute={"gpus": 2}, budget={"maxGpuHours": 4}))
    prepare_ends(plane, namespace, 3600)
    look_later(plane, namespace)
    kubelet.run(TRAIN)
    look_later(plane, namespace)
    assert cost_of(plane, namespace)["gpus"] == 2
    assert cost_of(plane, namespace)["estimate"] == {"gpuHours": "2.00", "amount": "5.00", "currency": "EUR"}
    assert look_later(plane, namespace) == 0, "a meter that goes on is no reason to write"

    # Nobody looks for an hour and a half: the time is in the pod.
    look_later(plane, namespace, 1.5 * HOUR)
    assert 3 * 3600 <= seconds_of(plane, namespace) < 3 * 3600 + 300
    words = Summary(
        stage=Stage.TRAIN,
        ok=False,
        run=1,
        failure=StageFailure(reason=FailureReason.INTERRUPTED, message="asked to stop"),
        checkpoint=Checkpoint(step=30),
    )
    look_later(plane, namespace, 2 * HOUR)
    held = ("True", "BudgetExceeded")
    until(plane, namespace, is_(plane, namespace, "Stalled", held), 2 * HOUR)
    assert "Job/travel-r1-train" not in [f"{kind}/{name}" for kind, name, _ in children(plane, namespace)]
    status = status_of(plane, namespace, "travel")
    assert status["run"]["failure"]["message"].startswith("4.")
    assert "Raise budget.maxGpuHours" in status["run"]["failure"]["advice"]
    used = seconds_of(plane, namespace)
    assert 4 * 3600 <= used < 4 * 3600 + 600
    assert look_later(plane, namespace, 50 * HOUR) == 0, "nothing is held, nothing is counted, nothing is written"
    assert "runs" not in status or status["runs"] == []

    set_budget(plane, namespace, {"maxGpuHours": 6, "maxCost": "15"})
    look_later(plane, namespace, 2 * HOUR)
    kubelet.run(TRAIN)
    look_later(plane, namespace, 2 * HOUR)
    assert cost_of(plane, namespace)["gpus"] == 2
    kubelet.end(TRAIN, words.to_message(), 75)  # a preemption on the way
    kubelet.run(TRAIN)
    look_later(plane, namespace, 2.5 * HOUR)
    assert status_of(plane, namespace, "travel")["run"]["attempt"] >= 2
    kubelet.end(TRAIN, good_summary("Train", 1))
    until(plane, namespace, lambda: plane.kubectl.get("job", "travel-r1-evaluate", namespace) is not None, 2.5 * HOUR)
    kubelet.end(f"{GROUP}/job=travel,{GROUP}/stage=Evaluate", good_summary("Evaluate", 1))
    until(plane, namespace, is_(plane, namespace, "Promoted", ("True", "GatePassed")), 2.5 * HOUR)
    status = status_of(plane, namespace, "travel")
    (record,) = status["runs"]
    assert (record["number"], record["result"]) == (1, "Promoted")
    assert record["cost"] == status["run"]["cost"]
    assert used + 3600 <= seconds_of(plane, namespace) < used + 3600 + 600
    assert record["cost"]["gpus"] == 0
    assert Decimal(record["cost"]["amount"]) == round(Decimal(seconds_of(plane, namespace)) * Decimal("2.5") / 3600, 2)
    assert status["run"]["checkpoint"]["step"] >= 30


def test_what_a_queue_chose_is_what_is_charged(plane: ControlPlane) -> None:
    """Kueue's admission: un-suspended, with the flavor's labels in the template, in one update."""
    namespace = make_namespace(plane, "flavors")
    priced = Settings(prices=Prices("EUR", {"default": Decimal("2.50"), "H100": Decimal(20)}))
    compute = {"gpus": 2, "queueName": "team"}
    plane.kubectl.apply(job_manifest("travel", namespace, compute=compute, budget={"maxCost": "40"}))
    prepare_ends(plane, namespace, 3600)
    look_later(plane, namespace, settings=priced)
    assert cost_of(plane, namespace)["estimate"]["amount"] == "5.00"
    spec = {"suspend": False, "template": {"spec": {"nodeSelector": {"example.com/gpu": "H100"}}}}
    plane.kubectl("patch", "job", "travel-r1-train", "-p", json.dumps({"spec": spec}), namespace=namespace)
    Kubelet(plane, namespace).run(TRAIN)
    look_later(plane, namespace, settings=priced)
    assert cost_of(plane, namespace)["estimate"] == {"gpuHours": "2.00", "amount": "40.00", "currency": "EUR"}
    look_later(plane, namespace, 1.5 * HOUR, settings=priced)
    assert is_(plane, namespace, "Reconciling", ("True", "BudgetExceeded"))()
    [used] = cost_of(plane, namespace)["usage"]
    assert (used["gpu"], used["price"]) == ("H100", "20")


def test_an_estimate_above_the_budget_makes_no_training_and_no_price_makes_nothing(plane: ControlPlane) -> None:
    namespace = make_namespace(plane, "estimates")
    plane.kubectl.apply(job_manifest("travel", namespace, compute={"gpus": 1}, budget={"maxCost": 2}))
    look_later(plane, namespace, settings=Settings())
    assert is_(plane, namespace, "Stalled", ("True", "PriceMissing"))()
    assert children(plane, namespace) == []
    prepare_ends(plane, namespace, 7200)
    until(plane, namespace, is_(plane, namespace, "Stalled", ("True", "BudgetExceeded")))
    message = status_of(plane, namespace, "travel")["run"]["failure"]["message"]
    assert message == "The training is estimated at 5.00 EUR; budget.maxCost is 2. No GPU was taken."
    set_budget(plane, namespace, {"maxCost": 5})
    until(plane, namespace, lambda: plane.kubectl.get("job", "travel-r1-train", namespace) is not None)
