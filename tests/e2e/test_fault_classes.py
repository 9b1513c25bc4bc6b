"""Each reason of a failure, made for real: what the status says while it lasts. docs/faults.md has the whole table.

The bad jobs of a table (bad_jobs.py) are applied at once and awaited side by side.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from finetune_api.conditions import FailureReason as Reason
from tests.cluster.environment import Cluster, LocalCluster
from tests.cluster.network import GATEWAY
from tests.e2e.bad_jobs import BAD, NAMESPACES, NO_GPU, NO_NODE, Bad, compute, no_gpu_memory
from tests.e2e.manifests import travel_job, with_epochs
from tests.e2e.product import Job, Product, Tenant, condition, failure, run_of, status, tenancy
from tests.hub_mirror import Mirror, Repository, serving

HUB = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}}
GATED: dict[str, Any] = {"baseModel": {"source": "hf://acme/gated", "secretRef": {"name": "hub"}}}
CRON = {"triggers": {"schedule": {"cron": "0 4 * * 1", "timeZone": "Mars/Olympus"}}}


@pytest.fixture(scope="module")
def many(
    product: Product, node_cluster: Cluster, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tenant]:
    """The tenant of all bad jobs, which were applied at once."""
    folder = tmp_path_factory.mktemp("bad-jobs")
    sources = folder / "inputs"
    shutil.copytree(inputs, sources)
    shutil.copytree(inputs / "tiny-base", sources / "nan-base")
    poison(sources / "nan-base" / "model.safetensors")
    policy = no_gpu_memory("bad-jobs") if node_cluster.is_local else ()
    with contextlib.ExitStack() as stack:
        tenant = stack.enter_context(tenancy(node_cluster, "bad-jobs", sources, folder))
        if node_cluster.is_local:
            closed = Mirror({"models/acme/gated": Repository({}, closed="GatedRepo")})
            hub = stack.enter_context(serving(closed, GATEWAY))
            node_cluster.kubectl.apply(*policy)
            tenant.apply({**HUB, "stringData": {"HF_ENDPOINT": hub.url}}, travel_job("gated", **GATED))
        tenant.apply(*(manifest for bad in BAD for manifest in bad.manifests))
        tenant.apply(
            travel_job("scheduled", suspend=True, **CRON),
            travel_job("changed", **compute(queueName="nobody-serves-it")),
            travel_job("paused", **compute(**NO_NODE)),
            travel_job("left", **compute(**NO_NODE)),
            costly(budget={"maxGpuHours": "0.01"}, **compute(**NO_GPU)),
        )
        yield tenant
        for manifest in policy:
            node_cluster.kubectl("delete", manifest["kind"], manifest["metadata"]["name"])


def poison(weights: Path) -> None:
    """One number of the model becomes NaN."""
    tensors = load_file(weights)
    norm = next(name for name in tensors if name.endswith("norm.weight"))
    tensors[norm][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})


def says(reason: Reason, words: str = "") -> Callable[[Job], bool]:
    return lambda job: failure(job).get("reason") == reason and words in failure(job)["message"]


def awaited(tenant: Tenant, name: str, reason: Reason, words: str, *, waits: bool, seconds: float = 600) -> Job:
    """The job as soon as it says so: with message, advice, and the conditions that go with it."""
    job = tenant.wait_for(name, says(reason, words), seconds, reason)
    told = failure(job)
    assert told["advice"], told
    assert bool(told.get("waiting")) is waits, told
    [ready] = [each for each in status(job)["conditions"] if each["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("False", reason)
    assert words in ready["message"]
    return job


@pytest.mark.parametrize("bad", BAD, ids=[bad.reason for bad in BAD])
def test_a_bad_job_says_why_and_what_to_do(many: Tenant, bad: Bad) -> None:
    if bad.reason is Reason.CUDA_OUT_OF_MEMORY:
        own_node_only(many)
    awaited(many, bad.name, bad.reason, bad.words, waits=bad.waits)


def test_broken_data_never_reaches_training(many: Tenant) -> None:
    job = awaited(many, "datasetinvalid", Reason.DATASET_INVALID, "line", waits=False)
    assert condition(job, "DatasetValid") == "False"
    assert condition(job, "Stalled") == "True"
    lines = {line for problem in run_of(job)["dataset"]["problems"] for line in problem["lines"]}
    assert {4, 7, 11} <= lines
    assert many.child_names("jobs", "datasetinvalid") == {"datasetinvalid-r1-prepare"}


@pytest.mark.parametrize("bad", NAMESPACES, ids=[bad.reason for bad in NAMESPACES])
def test_what_a_namespace_refuses_is_told(product: Product, node_cluster: Cluster, bad: Bad) -> None:
    """Its claims need not be there: no pod is ever made."""
    node_cluster.kubectl.make_namespace(f"bad-{bad.name}")
    tenant = Tenant(node_cluster, f"bad-{bad.name}")
    tenant.apply(*bad.beside)
    tenant.apply(*bad.manifests[len(bad.beside) :])
    awaited(tenant, bad.name, bad.reason, bad.words, waits=True)
    node_cluster.kubectl("delete", "namespace", tenant.name, "--wait=false")


def own_node_only(tenant: Tenant) -> LocalCluster:
    """A cluster of the developer's own may not reach this machine, and may not have this version's admission
    policies."""
    if not isinstance(tenant.cluster, LocalCluster):
        pytest.skip("this fault is made on the built-in node only")
    return tenant.cluster


def test_a_gated_model_is_told(many: Tenant) -> None:
    own_node_only(many)
    awaited(many, "gated", Reason.MODEL_ACCESS, "acme/gated", waits=False)


def test_a_schedule_that_cannot_be_is_told(many: Tenant) -> None:
    job = many.wait_for("scheduled", lambda job: condition(job, "Scheduled") == "False", 60, "Scheduled=False")
    [told] = [each for each in status(job)["conditions"] if each["type"] == "Scheduled"]
    assert told["reason"] == Reason.SCHEDULE_INVALID
    assert "Mars/Olympus" in told["message"]


def test_a_job_that_somebody_suspended_says_so_and_goes_on(many: Tenant) -> None:
    many.wait_for("paused", says(Reason.UNSCHEDULABLE), 60, "a pod that waits")
    suspend(many, "paused-r1-prepare", True)
    awaited(many, "paused", Reason.JOB_SUSPENDED, "paused-r1-prepare", waits=True)
    suspend(many, "paused-r1-prepare", False)
    many.wait_for("paused", says(Reason.UNSCHEDULABLE), 60, "a pod that waits again")


def suspend(tenant: Tenant, job: str, value: bool) -> None:
    tenant.kubectl(
        "patch", "job", job, "--type=merge", "-p", json.dumps({"spec": {"suspend": value}}), namespace=tenant.name
    )


def test_nothing_begins_beside_a_pod_that_its_job_left(many: Tenant) -> None:
    many.wait_for("left", says(Reason.UNSCHEDULABLE), 60, "a pod that waits")
    [pod] = many.child_names("pods", "left")
    many.kubectl("delete", "job", "left-r1-prepare", "--cascade=orphan", namespace=many.name)
    awaited(many, "left", Reason.FORMER_POD, pod, waits=True)
    assert many.child_names("pods", "left") == {pod}
    many.kubectl("delete", "pod", pod, "--force", "--grace-period=0", namespace=many.name)
    many.wait_for("left", says(Reason.UNSCHEDULABLE), 60, "a pod in its place")


def costly(**spec: Any) -> Job:
    """A training of more than half a minute, which is 0.01 GPU hours."""
    return with_epochs(travel_job("costly", **spec), 60)


def test_a_training_is_held_then_too_late_then_at_fault(many: Tenant) -> None:
    """What it may use and what it runs on is changed as one does who reads the status; the data is prepared once."""
    awaited(many, "costly", Reason.BUDGET_EXCEEDED, "GPU hours", waits=True)
    many.apply(costly(**compute(**NO_GPU, activeDeadlineSeconds=60)))
    many.wait_for("costly", says(Reason.UNSCHEDULABLE, "example.com/gpu"), 60, "a training that waits for a GPU")
    awaited(many, "costly", Reason.DEADLINE_EXCEEDED, "deadline", waits=False)
    own_node_only(many).set_gpus(1)  # that PyTorch cannot use
    many.apply(costly(**compute(gpus=1)))
    awaited(many, "costly", Reason.SYSTEM_FAULT, "GPU", waits=True)


def test_what_was_changed_on_the_volume_is_not_trained_on(many: Tenant) -> None:
    """It waits for a queue that nobody serves, and meanwhile somebody writes into what Prepare left."""
    awaited(many, "changed", Reason.QUEUED, "nobody-serves-it", waits=True)
    folder = own_node_only(many).folders[many.name, "models"]
    [data] = folder.glob(f"{many.name}/changed/runs/1-*/dataset/train.jsonl")
    data.write_text("{}")
    suspend(many, "changed-r1-train", False)
    awaited(many, "changed", Reason.ARTIFACT_INVALID, "train.jsonl", waits=False)
    assert run_of(many.job("changed")).get("model") is None
