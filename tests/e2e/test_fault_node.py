"""Two nodes, of which one is lost: four pods that train together, a server, and a pod that writes too much there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.conditions import FailureReason as Reason
from tests.cluster import images
from tests.cluster.environment import Cluster, LocalCluster
from tests.cluster.node import NODE
from tests.cluster.second_node import NAME as SECOND
from tests.cluster.second_node import SecondNode
from tests.e2e.manifests import travel_job, with_epochs
from tests.e2e.product import Job, Product, Tenant, condition, failure, run_of, status

pytestmark = pytest.mark.soak  # Kubernetes alone waits for a minute before it misses a node
STAGE = "finetune-operator.io/stage"
INDEX = "batch.kubernetes.io/job-completion-index"
# Kubernetes itself adds 300 seconds where a pod names none.
SOON = [
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}
    for taint in ("unreachable", "not-ready")
]


@pytest.fixture(scope="module")
def second_node(node_cluster: Cluster, trainer_image: str) -> Iterator[SecondNode]:
    """A second node with the trainer's image, until the end of this file."""
    if not isinstance(node_cluster, LocalCluster):
        pytest.skip("a node is lost on this machine only")
    second = SecondNode.start(node_cluster.node, images.trainer_image().archive)
    yield second
    second.stop()


def gang(epochs: int) -> Job:
    """Run 2 of the job: four pods, spread over the nodes."""
    job = with_epochs(first_run(), epochs)
    job["spec"]["compute"] |= {"nodes": 4, "tolerations": SOON}
    job["spec"]["hyperparameters"]["seed"] = 7
    return job


def first_run() -> Job:
    job = travel_job("travel")
    job["spec"]["compute"]["resources"]["requests"]["cpu"] = "50m"
    job["spec"]["serving"]["tolerations"] = SOON
    return job


class Members:
    """The training pods, as they were seen again and again: whether two of one member ever lived at a time."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.twice: list[list[str]] = []

    def look(self) -> dict[str, Job]:
        """The newest pod of each member."""
        newest: dict[str, Job] = {}
        living: dict[str, list[str]] = {}
        pods = [pod for pod in self.tenant.children("pods", "travel") if INDEX in pod["metadata"]["labels"]]
        for pod in sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"]):
            member = pod["metadata"]["labels"][INDEX]
            newest[member] = pod
            if pod["status"]["phase"] in ("Pending", "Running"):
                living.setdefault(member, []).append(pod["metadata"]["name"])
        self.twice += [names for names in living.values() if len(names) > 1]
        return newest

    def names(self) -> set[str]:
        return {pod["metadata"]["name"] for pod in self.look().values()}

    def on(self, node: str) -> set[str]:
        pods = self.look().values()
        return {pod["metadata"]["name"] for pod in pods if pod["spec"].get("nodeName") == node}


def cordon(tenant: Tenant, node: str, value: bool) -> None:
    tenant.kubectl("patch", "node", node, "-p", json.dumps({"spec": {"unschedulable": value}}))


def test_four_pods_and_a_server_outlive_a_lost_node(product: Product, tenant: Tenant, second_node: SecondNode) -> None:
    cordon(tenant, NODE, True)
    try:
        tenant.apply(first_run())
        tenant.wait_ready("travel")
    finally:
        cordon(tenant, NODE, False)
    [server] = servers(tenant)
    assert server["spec"]["nodeName"] == SECOND

    members = Members(tenant)
    tenant.apply(gang(40))
    step = beyond(tenant, members, 25)
    first = members.names()
    assert len(first) == 4
    assert len(members.on(NODE)) == len(members.on(SECOND)) == 2

    # One of the four is killed, without a word and without its grace period.
    tenant.kubectl("delete", "pod", min(members.on(NODE)), "--grace-period=0", "--force", namespace=tenant.name)
    tenant.wait_for("travel", lambda _: len(members.names() - first) == 4, 300, "four pods in their places")
    step = beyond(tenant, members, step)

    there = members.on(SECOND)
    assert len(there) == 2
    second_node.lose()
    lost = tenant.wait_for("travel", is_lost, 240, "a lost node that is told")
    told = failure(lost)
    assert told["waiting"] is True
    assert SECOND in told["message"]
    assert f"kubectl taint nodes {SECOND} node.kubernetes.io/out-of-service" in told["advice"]
    assert condition(lost, "Reconciling") == "True"
    # The server is replaced on the node that is left, the training is not: its pods may still write.
    tenant.wait_for(
        "travel", lambda _: NODE in {pod["spec"].get("nodeName") for pod in servers(tenant)}, 90, "a server"
    )
    serving = tenant.wait_for("travel", lambda job: condition(job, "Serving") == "True", 300, "run 1 in service again")
    assert status(serving)["endpoint"]["run"] == 1
    assert is_lost(serving), failure(serving)
    assert there <= members.names(), "nothing began beside them"

    second_node.come_back()
    tenant.wait_for("travel", lambda _: not there & members.names(), 240, "the end of the lost pods")
    ready = tenant.wait_for(
        "travel",
        lambda job: bool(members.look()) and status(job).get("endpoint", {}).get("run") == 2,
        1200,
        "run 2 in service",
    )
    assert members.twice == []
    assert run_of(ready)["number"] == 2
    job = tenant.kubectl.json("get", "job", "travel-r2-train", namespace=tenant.name)
    assert job["metadata"]["labels"]["finetune-operator.io/attempt"] == "1"
    assert job["status"]["succeeded"] == 4
    logs = tenant.kubectl(
        *("logs", "-l", "finetune-operator.io/stage=Train,finetune-operator.io/run=2", "--tail=-1", "--prefix"),
        namespace=tenant.name,
    )
    resumed = max(int(step) for step in re.findall(r"resumed_from_step=(\d+)", logs))
    assert resumed >= step - 20, f"it was at {step}: {logs[-3000:]}"
    assert run_of(ready)["evaluation"]["tuned"]["loss"] < run_of(ready)["evaluation"]["base"]["loss"]


def beyond(tenant: Tenant, members: Members, step: int) -> int:
    """The step of run 2 as soon as it is a later one than this, in a training of four pods that goes on."""

    def reached(job: Job) -> bool:
        running = [pod for pod in members.look().values() if pod["status"]["phase"] == "Running"]
        return len(running) == 4 and run_of(job).get("number") == 2 and at_step(job) > step

    return at_step(tenant.wait_for("travel", reached, 600, f"a step of run 2 after {step}"))


def at_step(job: Job) -> int:
    return int((run_of(job).get("progress") or {}).get("step", 0))


def is_lost(job: Job) -> bool:
    return bool(failure(job).get("reason") == Reason.NODE_LOST)


def servers(tenant: Tenant) -> list[Job]:
    """The pods that serve and are not on their way out."""
    pods = tenant.children("pods", "travel")
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return [pod for pod in staying if pod["metadata"]["labels"][STAGE] == "Serve"]


def test_a_pod_that_its_node_puts_out_says_why(product: Product, tenant: Tenant, second_node: SecondNode) -> None:
    """The kubelet counts what the pod has written to its own disk, its log included, and it may write nothing."""
    job = travel_job("travel")
    resources: dict[str, Any] = {"limits": {"ephemeral-storage": "1Ki"}}
    job["spec"]["compute"] |= {"resources": resources, "nodeSelector": {"kubernetes.io/hostname": SECOND}}
    tenant.apply(job)
    seen = tenant.wait_for("travel", lambda job: failure(job).get("reason") == Reason.EVICTED, 300, "Evicted")
    assert "ephemeral" in failure(seen)["message"]
    assert "limits.ephemeral-storage" in failure(seen)["advice"]
    # It is heeded at once: nobody waits until the Job controller would try again.
    resources["limits"]["ephemeral-storage"] = "1Gi"
    tenant.apply(job)
    tenant.wait_for("travel", lambda job: condition(job, "DatasetValid") == "True", 300, "data that is prepared")


def test_a_machine_that_is_said_to_be_off_is_replaced(
    product: Product, tenant: Tenant, second_node: SecondNode
) -> None:
    """The advice of NodeLost, word for word."""
    job = with_epochs(travel_job("travel", serving={"replicas": 0}), 10)
    job["spec"]["compute"]["tolerations"] = SOON
    cordon(tenant, NODE, True)
    try:
        tenant.apply(job)
        tenant.wait_for("travel", lambda job: (run_of(job).get("progress") or {}).get("step", 0) >= 25, 300, "step 25")
    finally:
        cordon(tenant, NODE, False)
    second_node.lose()
    lost = tenant.wait_for("travel", is_lost, 240, "a lost node that is told")
    found = re.search(r"kubectl (taint nodes \S+ \S+:NoExecute)", failure(lost)["advice"])
    assert found, failure(lost)
    words = found[1].split()
    tenant.kubectl(*words)
    try:
        tenant.wait_ready("travel")
    finally:
        tenant.kubectl(*words[:-1], words[-1] + "-")
    [pod] = [pod for pod in tenant.children("pods", "travel") if pod["metadata"]["labels"][STAGE] == "Train"]
    assert pod["spec"]["nodeName"] == NODE
    logs = tenant.kubectl("logs", pod["metadata"]["name"], "--tail=-1", namespace=tenant.name)
    resumed = re.search(r"resumed_from_step=(\d+)", logs)
    assert resumed, logs[-3000:]
    assert int(resumed[1]) >= 20
    after = tenant.kubectl.json("get", "job", "travel-r1-train", namespace=tenant.name)
    assert after["status"].get("failed", 0) == 0
    second_node.come_back()
