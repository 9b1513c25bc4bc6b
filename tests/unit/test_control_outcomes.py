"""What is counted of a written status: each second and each cent once, whoever writes it."""

from __future__ import annotations

from decimal import Decimal

from tests.simulator import Cluster, make_job

from finetune_operator.control.metrics import REGISTRY
from finetune_operator.control.outcomes import count_outcomes
from finetune_operator.prices import Prices
from finetune_operator.settings import Settings


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def count_all(cluster: Cluster, namespace: str) -> None:
    """The life of a job, pass by pass, as the control plane counts it."""

    def counted(now: Cluster) -> bool:
        count_outcomes(namespace, before[0], now.job.status)
        before[0] = now.job.status
        return False

    before = [cluster.job.status]
    cluster.run(until=counted)


def test_what_the_status_says_is_counted_once_by_namespace() -> None:
    settings = Settings(prices=Prices("EUR", {"default": Decimal("36")}))
    cluster = Cluster(make_job(compute={"gpus": 4}), settings)
    count_all(cluster, "counted")
    cost = cluster.job.status.run and cluster.job.status.run.cost
    assert cost
    assert cost.gpu_seconds > 0
    assert metric("finetune_gpu_seconds_total", namespace="counted") == cost.gpu_seconds
    spent = metric("finetune_cost_total", namespace="counted", currency="EUR")
    assert round(spent, 6) == round(float(cost.spent("EUR")), 6)
    before = spent
    count_all(cluster.change(rerunToken="again"), "counted")
    second = cluster.job.status.run and cluster.job.status.run.cost
    assert second
    spent = metric("finetune_cost_total", namespace="counted", currency="EUR")
    assert round(spent - before, 6) == round(float(second.spent("EUR")), 6)
    assert metric("finetune_budget_stops_total", namespace="counted") == 0


def test_a_run_that_is_held_is_counted_once() -> None:
    cluster = Cluster(make_job(compute={"gpus": 4}, budget={"maxGpuHours": "0.000001"}))
    count_all(cluster, "held")
    assert cluster.condition("Stalled") == ("True", "BudgetExceeded")
    count_all(cluster.change(serving={"replicas": 2}), "held")
    assert metric("finetune_budget_stops_total", namespace="held") == 1
