"""What counts as a change of our fields, and that admission and its fights end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.simulator import Cluster, make_job

from finetune_operator.control.allowance import Allowance
from finetune_operator.control.cache import Cache
from finetune_operator.control.resources import DEPLOYMENT
from finetune_operator.drift import has_drifted, holds
from finetune_operator.plan import Manifest

SCALED = {"manager": "kube-controller-manager", "subresource": "scale", "operation": "Update"}


def server() -> Manifest:
    """A Deployment as it is wanted."""
    cluster = Cluster(make_job()).run()
    wanted = copy.deepcopy(cluster.objects["Deployment", "travel-serve"])
    wanted["metadata"] |= {"uid": "d", "resourceVersion": "1", "ownerReferences": []}
    return wanted


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ({"a": 1}, {"a": 1, "defaulted": 2}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {}, False),
        ({"a": 1}, None, False),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 2, "d": 3}]}}, True),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": "", "b": False, "c": {}, "d": 0}, {}, True),
        ({"a": False}, {"a": True}, False),
        ({"a": {}}, {"a": {"b": 1}}, True),
        ({"requests": {"cpu": "1000m", "gpu": 1}}, {"requests": {"cpu": "1", "gpu": "1", "x": "1"}}, True),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "2Gi"}}, False),
        ({"limits": {"memory": "1Gi"}}, {"limits": {}}, False),
        ({"limits": {"cpu": "0.0000005"}}, {"limits": {"cpu": "500n"}}, True),
        ({"emptyDir": {"sizeLimit": "1024Mi"}}, {"emptyDir": {"sizeLimit": "1Gi"}}, True),
        ({"emptyDir": {"sizeLimit": "1Gi"}}, {"emptyDir": {}}, False),
        ({"env": [{"name": "X", "value": "1.0"}]}, {"env": [{"name": "X", "value": "1"}]}, False),
        ({"selector": {"a": "b"}}, {"selector": {"a": "b", "c": "d"}}, False),
        ({"nodeSelector": {"a": "b"}}, {"nodeSelector": {"a": "b", "c": "d"}}, False),
    ],
)
def test_only_our_fields_count(wanted: Any, found: Any, same: bool) -> None:
    assert holds(found, wanted) is same


@pytest.mark.parametrize(
    ("path", "value", "drifted"),
    [
        (("spec", "replicas"), 3, True),
        (("spec", "template", "spec", "containers", 0, "image"), "example.com/other:1", True),
        (("spec", "template", "metadata", "annotations", "kubectl.kubernetes.io/restartedAt"), "now", False),
        (("spec", "paused"), True, False),
        (("metadata", "labels", "theirs"), "x", False),
        (("metadata", "labels", "finetune-operator.io/job"), "x", True),
    ],
)
def test_a_server_that_somebody_changed_is_written_again(path: tuple[Any, ...], value: Any, drifted: bool) -> None:
    cluster = Cluster(make_job()).run()
    place: Any = cluster.objects["Deployment", "travel-serve"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert [each["kind"] for each in cluster.plan().apply] == (["Deployment"] if drifted else [])
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")


def test_replicas_are_an_autoscalers_once_it_has_set_them() -> None:
    cluster = Cluster(make_job()).run()
    deployment = cluster.objects["Deployment", "travel-serve"]
    deployment["spec"]["replicas"] = 3
    deployment["metadata"]["managedFields"] = [SCALED]
    assert cluster.plan().apply == ()
    cluster.execute(cluster.plan())
    assert cluster.condition("Ready") == ("False", "RollingOut"), "two of three servers are not there yet"
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    deployment["metadata"]["managedFields"] = [{**SCALED, "manager": "kubectl"}]
    assert [each["kind"] for each in cluster.plan().apply] == ["Deployment"]


def test_the_cache_keeps_what_drift_is_seen_by() -> None:
    cache, wanted = Cache(), server()
    live = {**wanted, "metadata": {**wanted["metadata"], "managedFields": [SCALED, {"manager": "x", "fieldsV1": {}}]}}
    cache.store(DEPLOYMENT, live)
    found = cache.get(DEPLOYMENT, ("team-a", "travel-serve"))
    assert found
    assert found["spec"] == wanted["spec"]
    assert found["metadata"]["managedFields"] == [{"manager": "kube-controller-manager", "subresource": "scale"}]
    assert not has_drifted(found, wanted)


def test_what_admission_made_of_a_server_counts_as_what_we_wrote_until_somebody_changes_it() -> None:
    cache, wanted = Cache(), server()
    name = ("team-a", "travel-serve")

    def stored(version: int, image: str) -> Manifest:
        live = copy.deepcopy(wanted)
        live["metadata"]["resourceVersion"] = str(version)
        live["spec"]["template"]["spec"]["containers"][0]["image"] = image
        cache.store(DEPLOYMENT, live)
        return live

    cache.admit(stored(1, "mirror.example.com/trainer"), wanted)
    assert not has_drifted(cache.get(DEPLOYMENT, name) or {}, wanted)
    stored(2, "mirror.example.com/trainer")
    assert not has_drifted(cache.get(DEPLOYMENT, name) or {}, wanted)
    changed = stored(3, "somebody.example.com/else")
    assert has_drifted(cache.get(DEPLOYMENT, name) or {}, wanted)
    cache.admit({**changed, "spec": {}}, wanted)
    assert has_drifted(cache.get(DEPLOYMENT, name) or {}, wanted), "a change came between our write and its answer"


def test_an_allowance_is_spent_and_grows_again() -> None:
    now = 0.0
    allowance = Allowance[str](2, 60.0, clock=lambda: now)
    assert [allowance.take("a") for _ in range(3)] == [True, True, False]
    assert allowance.take("b")
    now = 59.0
    assert not allowance.has("a")
    assert not allowance.take("a")
    now = 61.0
    assert allowance.has("a")
    assert allowance.take("a")
    assert not allowance.take("a")
    now = 10_000.0
    assert [allowance.take("a") for _ in range(3)] == [True, True, False]
