"""The real Kueue decides when jobs train: quota, priority, preemption, and queues that let nobody through."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from tests.cluster.environment import Cluster
from tests.cluster.errors import Unavailable
from tests.cluster.fixtures import leave_out
from tests.e2e.manifests import travel_job, with_epochs
from tests.e2e.product import Job, Product, Tenant, condition, failure, run_of

KUEUE = "kueue.x-k8s.io/v1beta2"


def cluster_queue(name: str, cpu: str = "300m", **spec: Any) -> Job:
    """A ClusterQueue for any namespace, by default with room for one training: a training asks for 200m."""
    amounts = {"cpu": cpu, "memory": "1Ti"}
    resources = [{"name": resource, "nominalQuota": amount} for resource, amount in amounts.items()]
    group = {"coveredResources": list(amounts), "flavors": [{"name": "any", "resources": resources}]}
    body = {"namespaceSelector": {}, "resourceGroups": [group], **spec}
    return {"apiVersion": KUEUE, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": body}


def local_queue(name: str, cluster_queue: str) -> Job:
    spec = {"clusterQueue": cluster_queue}
    return {"apiVersion": KUEUE, "kind": "LocalQueue", "metadata": {"name": name}, "spec": spec}


def priority(name: str, value: int) -> Job:
    return {"apiVersion": KUEUE, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}


@pytest.fixture(scope="module")
def kueue(node_cluster: Cluster, product: Product) -> None:
    """Kueue with room for one training, and an operator that has seen it when it began to lead."""
    try:
        node_cluster.install_kueue()
    except Unavailable as error:
        leave_out(error)
    node_cluster.kubectl.apply(
        cluster_queue("one", preemption={"withinClusterQueue": "LowerPriority"}),
        cluster_queue("two", cpu="600m"),
        cluster_queue("held", stopPolicy="Hold"),
        priority("low", 1),
        priority("high", 1000),
    )
    product.scale(0)
    product.scale(1)


def queued_job(name: str, priority: str, epochs: int) -> Job:
    """A job that waits for its turn."""
    job = with_epochs(copy.deepcopy(travel_job(name)), epochs)
    job["spec"]["compute"] |= {"queueName": "team", "workloadPriorityClassName": priority}
    job["spec"]["serving"] = {"replicas": 0}
    return job


def stage_job(tenant: Tenant, name: str) -> Job:
    found: Job = tenant.kubectl.json("get", "job", name, namespace=tenant.name)
    return found


def waits(reason: str, *words: str) -> Any:
    return lambda job: failure(job).get("reason") == reason and all(word in failure(job)["message"] for word in words)


def test_who_has_priority_trains_and_the_other_goes_on_from_its_checkpoint(
    product: Product, tenant: Tenant, kueue: None
) -> None:
    tenant.apply(local_queue("team", "one"))
    tenant.apply(queued_job("low", "low", 10))
    tenant.wait_for("low", lambda job: (run_of(job).get("progress") or {}).get("step", 0) >= 5, 600, "step 5")
    before = stage_job(tenant, "low-r1-train")
    assert before["spec"]["template"]["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux"}, "Kueue's choice"

    tenant.apply(queued_job("high", "high", 1))
    seen = tenant.wait_for("low", waits("Queued", "It had to give way"), 300, "giving way")
    assert condition(seen, "Ready") == "False"
    tenant.wait_ready("high")

    low = tenant.wait_ready("low")
    after = stage_job(tenant, "low-r1-train")
    assert after["metadata"]["uid"] == before["metadata"]["uid"], "its Job keeps its place"
    assert after["status"].get("failed", 0) == 0
    logs = tenant.kubectl("logs", "job/low-r1-train", "--tail=-1", namespace=tenant.name)
    resumed = re.search(r"resumed_from_step=(\d+)", logs)
    assert resumed, logs[-3000:]
    assert int(resumed.group(1)) >= 5
    assert run_of(low)["interruptions"]["lostSteps"] == 0


def test_queues_that_let_nobody_through_are_named(product: Product, tenant: Tenant, kueue: None) -> None:
    tenant.apply(local_queue("team", "one"), local_queue("stopped", "held"))
    job = queued_job("travel", "low", 1)
    for compute, words in (
        ({"queueName": "nowhere"}, ("nowhere", "doesn't exist")),
        ({"queueName": "stopped"}, ("inactive",)),
        ({"queueName": "team", "resources": {"requests": {"cpu": "1"}}}, ("maximum capacity",)),
    ):
        job["spec"]["compute"] |= compute
        tenant.apply(job)
        seen = tenant.wait_for("travel", waits("QueueUnavailable", *words), 300, str(compute))
        assert failure(seen)["advice"]
        assert condition(seen, "DatasetValid") == "True", "the data was checked without waiting"


def test_two_nodes_are_admitted_together_and_go_on_when_one_is_lost(
    product: Product, tenant: Tenant, kueue: None
) -> None:
    tenant.apply(local_queue("team", "two"))
    job = with_epochs(copy.deepcopy(travel_job("travel")), 10)
    job["spec"]["compute"] |= {"nodes": 2, "queueName": "team"}
    job["spec"]["serving"] = {"replicas": 0}
    tenant.apply(job)
    tenant.wait_for("travel", lambda job: (run_of(job).get("progress") or {}).get("step", 0) >= 25, 600, "step 25")
    [workload] = tenant.kubectl.json("get", "workloads", namespace=tenant.name)["items"]
    assert [each["count"] for each in workload["spec"]["podSets"]] == [2]
    before = trainers(tenant)
    assert set(before) == {"0", "1"}

    # By force, so without its grace period: it has the two seconds that the kubelet gives all the same.
    tenant.kubectl("delete", "pod", before["1"], "--grace-period=0", "--force", namespace=tenant.name)
    tenant.wait_for(
        "travel", lambda _: not set(before.values()) & set(trainers(tenant).values()), 300, "two pods in their places"
    )
    ready = tenant.wait_ready("travel")
    logs = tenant.kubectl(
        "logs", "-l", "finetune-operator.io/stage=Train", "--tail=-1", "--prefix", namespace=tenant.name
    )
    resumed = [int(step) for step in re.findall(r"resumed_from_step=(\d+)", logs)]
    assert max(resumed) >= 20, logs[-3000:]
    assert stage_job(tenant, "travel-r1-train")["metadata"]["labels"]["finetune-operator.io/attempt"] == "1"
    assert run_of(ready)["evaluation"]["tuned"]["loss"] < run_of(ready)["evaluation"]["base"]["loss"]
    assert "travel-peers" not in tenant.child_names("services", "travel")


def trainers(tenant: Tenant) -> dict[str, str]:
    """The newest training pod of each index."""
    index = "batch.kubernetes.io/job-completion-index"
    pods = [pod for pod in tenant.children("pods", "travel") if index in pod["metadata"]["labels"]]
    pods.sort(key=lambda pod: pod["metadata"]["creationTimestamp"])
    return {pod["metadata"]["labels"][index]: pod["metadata"]["name"] for pod in pods}
