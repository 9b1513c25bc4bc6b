"""What goes wrong around a job, and what is seen of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.e2e.manifests import travel_job, with_epochs
from tests.e2e.product import Job, Product, Tenant, condition, failure, run_of


def test_a_training_that_is_interrupted_or_suspended_goes_on_where_it_was(product: Product, tenant: Tenant) -> None:
    tenant.apply(with_epochs(travel_job("travel"), 10))
    tenant.wait_for("travel", lambda job: (run_of(job).get("progress") or {}).get("step", 0) >= 25, 600, "step 25")
    # An edit by mistake, and its revert: the training that it ended goes on.
    mistaken = with_epochs(travel_job("travel"), 10)
    mistaken["spec"]["hyperparameters"]["seed"] = 9
    tenant.apply(mistaken)
    tenant.wait_for("travel", lambda job: run_of(job)["number"] == 2, 60, "run 2")
    tenant.apply(with_epochs(travel_job("travel"), 10))
    tenant.wait_for("travel", lambda job: run_of(job)["number"] == 1, 60, "run 1 again")
    taken_up = resumed_from(tenant, 25)
    tenant.wait_for("travel", lambda job: (run_of(job).get("progress") or {}).get("step", 0) > taken_up, 300, "a step")
    [pod] = [
        p["metadata"]["name"]
        for p in tenant.children("pods", "travel")
        if p["metadata"]["labels"]["finetune-operator.io/stage"] == "Train"
    ]
    tenant.kubectl("delete", "pod", pod, "--wait=false", namespace=tenant.name)
    tenant.wait_for("travel", waits_with("Interrupted"), 60, "Interrupted")
    assert resumed_from(tenant, taken_up + 1) > taken_up

    # The same by the user's own wish: no Job and no pod is left, and the checkpoint is the next one's beginning.
    tenant.wait_for("travel", lambda job: run_of(job)["progress"]["step"] >= 60, 600, "step 60")
    tenant.apply(with_epochs(travel_job("travel", suspend=True), 10))
    held = tenant.wait_for("travel", lambda job: condition(job, "Suspended") == "True", 120, "Suspended")
    saved = run_of(held)["checkpoint"]["step"]
    assert saved >= 60
    assert "travel-r1-train" not in tenant.child_names("jobs", "travel")
    assert not [pod for pod in tenant.children("pods", "travel") if stage_of(pod) == "Train"]
    tenant.apply(with_epochs(travel_job("travel", suspend=False), 10))
    ready = tenant.wait_ready("travel")
    assert resumed_from(tenant, saved) == saved
    costs = run_of(ready)["interruptions"]
    assert costs["lostSteps"] == 0
    assert costs["stepSeconds"] > 0
    assert costs["graceSeconds"] == 30, "what a tiny model was measured to need, which is less than the least"


def stage_of(pod: Job) -> str:
    stage: str = pod["metadata"]["labels"]["finetune-operator.io/stage"]
    return stage


def resumed_from(tenant: Tenant, least: int) -> int:
    """The step from which the training pod went on, at least this one."""

    def found() -> int | None:
        logs = tenant.kubectl("logs", "-l", "finetune-operator.io/stage=Train", "--tail=-1", namespace=tenant.name)
        steps = [int(step) for step in re.findall(r"resumed_from_step=(\d+)", logs) if int(step) >= least]
        return max(steps, default=None)

    step = tenant.kubectl.wait_until(found, 300, f"a training that goes on from step {least} or later", tenant.name)
    assert step is not None
    return step


def test_operator_absent_in_every_stage(product: Product, tenant: Tenant) -> None:
    """Killed while a stage runs, and away until its pod has ended: nothing is lost, nothing runs twice."""
    tenant.apply(travel_job("travel"))
    stage_jobs = ["travel-r1-prepare", "travel-r1-train", "travel-r1-evaluate"]
    for stage_job in stage_jobs:
        tenant.kubectl.wait_until(
            lambda name=stage_job: tenant.kubectl.get("job", name, tenant.name), 600, stage_job, tenant.name
        )
        product.kill_operator()
        product.scale(0)
        tenant.kubectl(
            "wait", f"job/{stage_job}", "--for=condition=Complete", "--timeout=600s", namespace=tenant.name, timeout=620
        )
        product.scale(1)
    tenant.kubectl.wait_until(
        lambda: tenant.kubectl.get("deployment", "travel-serve", tenant.name),
        120,
        "the server's Deployment",
        tenant.name,
    )
    product.kill_operator()
    product.scale(0)
    product.scale(1)
    tenant.wait_ready("travel")
    for stage_job in stage_jobs:
        found = tenant.kubectl.json("get", "job", stage_job, namespace=tenant.name)
        assert found["status"].get("succeeded") == 1
        assert found["status"].get("failed", 0) == 0
        assert found["metadata"]["labels"]["finetune-operator.io/attempt"] == "1"


def waits_with(reason: str) -> Any:
    def check(job: Job) -> bool:
        return failure(job).get("reason") == reason and bool(failure(job).get("advice"))

    return check


def test_gpu_that_no_node_has_is_named(product: Product, tenant: Tenant) -> None:
    job = travel_job("travel")
    job["spec"]["compute"] |= {"gpus": 1, "gpuResource": "example.com/gpu"}
    tenant.apply(job)
    seen = tenant.wait_for("travel", waits_with("Unschedulable"), 240, "Unschedulable")
    assert failure(seen)["waiting"] is True
    assert "example.com/gpu" in failure(seen)["message"]

    # The user gives up the GPU: the waiting pod is replaced, and the trouble is no longer shown.
    job["spec"]["compute"]["gpus"] = 0
    tenant.apply(job)
    ready = tenant.wait_ready("travel")
    assert not failure(ready)


@pytest.fixture
def missing_image(product: Product) -> Any:
    """The operator with a trainer image that does not exist; the right one again afterwards."""
    product.install(**{"trainer.image.tag": "no-such-tag"})
    yield
    product.install()


def test_missing_image_is_named(product: Product, tenant: Tenant, missing_image: None) -> None:
    tenant.apply(travel_job("travel"))
    seen = tenant.wait_for("travel", waits_with("ImagePull"), 120, "ImagePull")
    assert "no-such-tag" in failure(seen)["message"]
