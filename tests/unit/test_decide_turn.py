"""An upgrade wants all servers otherwise at the same moment: a few jobs' at a time are replaced."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from tests.simulator import Cluster, make_job

from finetune_operator.control.cache import Cache
from finetune_operator.control.resources import DEPLOYMENT
from finetune_operator.control.turns import Turns
from finetune_operator.diagnose.facts import is_rolling
from finetune_operator.plan import Plan
from finetune_operator.settings import Settings

NEWER = "registry.example.com/trainer:0.2.0"


def upgraded(rolling: int, **spec: Any) -> Cluster:
    """A job that answers, and an operator that brings another image, while the servers of others are being replaced."""
    cluster = Cluster(make_job(**spec), settings=Settings(server_rollouts=2)).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    cluster.settings = replace(cluster.settings, trainer_image=NEWER)
    cluster.rolling = rolling
    return cluster


def image(cluster: Cluster) -> str:
    return str(cluster.objects["Deployment", "travel-serve"]["spec"]["template"]["spec"]["containers"][0]["image"])


def test_servers_are_replaced_while_few_others_are() -> None:
    cluster = upgraded(rolling=1)
    assert not cluster.plan().awaits_turn
    assert [manifest["kind"] for manifest in cluster.plan().apply] == ["Deployment"]
    assert image(cluster.run()) == NEWER


def test_a_job_that_awaits_its_turn_stays_ready_and_writes_nothing() -> None:
    cluster = upgraded(rolling=2)
    before, plan = cluster.job.status, cluster.plan()
    assert plan == Plan(status=before, awaits_turn=True)
    cluster.rolling = 1
    assert image(cluster.run()) == NEWER
    assert cluster.condition("Ready") == ("True", "Serving")


def test_without_a_bound_all_are_replaced_at_once() -> None:
    cluster = upgraded(rolling=1000)
    cluster.settings = replace(cluster.settings, server_rollouts=0)
    assert image(cluster.run()) == NEWER


@pytest.mark.parametrize("change", [{"serving": {"replicas": 2}}, {"serving": {"resources": {"limits": {"cpu": "2"}}}}])
def test_what_the_user_asks_for_waits_for_nobody(change: dict[str, Any]) -> None:
    cluster = upgraded(rolling=2).change(**change)
    assert [manifest["kind"] for manifest in cluster.plan().apply] == ["Deployment"]


def test_a_promotion_and_a_rollback_wait_for_nobody() -> None:
    cluster = upgraded(rolling=2).change(rerunToken="b").run()
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.run == 2
    cluster.change(rerunToken="b", serving={"run": 1}).run()
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.run == 1


def test_a_server_that_does_not_answer_waits_for_nobody() -> None:
    cluster = upgraded(rolling=2)
    cluster.objects["Deployment", "travel-serve"]["status"]["availableReplicas"] = 0
    assert [manifest["kind"] for manifest in cluster.plan().apply] == ["Deployment"]


def test_a_lost_server_is_made_again_and_the_trouble_of_one_that_waits_is_told() -> None:
    cluster = upgraded(rolling=2)
    healthy = copy.deepcopy(cluster.objects["Deployment", "travel-serve"]["status"])
    cluster.objects["Deployment", "travel-serve"]["status"] = {**healthy, "unavailableReplicas": 1}
    assert cluster.plan().awaits_turn
    cluster.execute(cluster.plan())
    assert cluster.condition("Ready") == ("False", "RollingOut")
    cluster.vanish("Deployment", "travel-serve")
    assert [manifest["kind"] for manifest in cluster.plan().apply] == ["Deployment"]


NEW = {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1}


@pytest.mark.parametrize(
    ("generation", "status", "rolling"),
    [
        (1, {}, False),  # its first servers replace nobody
        (1, {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}, False),
        (2, {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}, True),
        (2, {**NEW, "replicas": 2}, True),
        (2, NEW, False),
        (2, {**NEW, "replicas": 2, "conditions": [{"reason": "ProgressDeadlineExceeded"}]}, False),
        (2, {**NEW, "replicas": 2, "conditions": [{"reason": "DeploymentPaused"}]}, False),
    ],
)
def test_whether_servers_are_being_replaced(generation: int, status: dict[str, Any], rolling: bool) -> None:
    assert is_rolling({"metadata": {"generation": generation}, "status": status}) is rolling


def tell(cache: Cache, job: str, version: int, status: dict[str, Any]) -> None:
    """What the watch says of the job's Deployment."""
    metadata = {"name": f"{job}-serve", "namespace": "team-a", "uid": f"{job}-d", "resourceVersion": str(version)}
    body = {"kind": DEPLOYMENT.kind, "metadata": {**metadata, "generation": 2}, "spec": {}, "status": status}
    cache.store(DEPLOYMENT, body)


def test_passes_at_the_same_time_take_no_more_turns_than_there_are_and_who_waits_comes_when_one_is_free() -> None:
    status = make_job().status
    cache = Cache()
    turns = Turns(cache, at_once=2)
    a, b, c, d = (("team-a", name) for name in "abcd")
    replaces = Plan(status=status, apply=({"kind": "Deployment"},))
    for number, name in enumerate((a, b)):
        assert turns.others(name) == number
        turns.decided(name, replaces)
    for name in (c, d):
        assert turns.others(name) == 2
        turns.decided(name, Plan(status=status, awaits_turn=True))
    tell(cache, "a", 1, {**NEW, "replicas": 2})
    assert turns.ended(a) == [], "it rolls now, and b's pass is under way"
    assert turns.others(c) == 2
    tell(cache, "a", 2, NEW)
    assert turns.ended(a) == [c]
    turns.decided(c, replaces)
    assert turns.ended(b) == [d], "its write was refused: nothing rolls"
    turns.forget(d)
    assert turns.ended(c) == []
