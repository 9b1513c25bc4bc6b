"""A second run beside a served first one, a failed gate, a rollback, deletion, and a reinstallation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import openai

from tests.e2e.manifests import travel_job
from tests.e2e.product import Product, Tenant, condition, run_of, status


@contextmanager
def asking(tenant: Tenant) -> Iterator[list[str]]:
    """Asks the Service from inside the cluster, again and again, until the block ends; yields what failed.

    From inside, because a port-forward goes to one pod and would end with it.
    """
    address = tenant.kubectl(
        "get", "service", "travel-serve", "-o", "jsonpath={.spec.clusterIP}", namespace=tenant.name
    )
    failures: list[str] = []
    answered: list[int] = []
    stop = threading.Event()

    def loop() -> None:
        client = openai.OpenAI(base_url=f"http://{address}:8000/v1", api_key="none", max_retries=0, timeout=60)
        while not stop.is_set():
            try:
                client.chat.completions.create(
                    model="travel", max_tokens=4, messages=[{"role": "user", "content": "What should I see in Lisbon?"}]
                )
                answered.append(1)
            except Exception as error:  # every kind of failure counts
                failures.append(f"{type(error).__name__}: {error}")
            stop.wait(0.2)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield failures
    finally:
        stop.set()
        thread.join(timeout=90)
    assert answered


def test_second_run_failed_gate_and_rollback(product: Product, tenant: Tenant) -> None:
    tenant.apply(travel_job("travel"))
    first = tenant.wait_ready("travel")
    assert status(first)["endpoint"]["run"] == 1

    lines = (tenant.sources / "travel" / "train.jsonl").read_text().splitlines()
    (tenant.sources / "travel" / "train-2.jsonl").write_text("\n".join(lines[:160]) + "\n")
    second = travel_job("travel")
    second["spec"]["dataset"]["train"]["source"] = "pvc://sources/travel/train-2.jsonl"
    with asking(tenant) as failures:
        tenant.apply(second)
        tenant.wait_for("travel", lambda job: run_of(job).get("number") == 2, 60, "run 2")
        during = tenant.wait_for("travel", lambda job: condition(job, "DatasetValid") == "True", 120, "data of run 2")
        assert status(during)["endpoint"]["run"] == 1, "run 1 answers while run 2 trains"
        tenant.wait_for("travel", lambda job: status(job)["endpoint"]["run"] == 2, 420, "run 2 in service")
    assert failures == []
    tenant.wait_ready("travel")

    third = travel_job("travel")
    third["spec"]["hyperparameters"]["seed"] = 7
    third["spec"]["evaluation"]["gate"] = {"rules": [{"metric": "loss", "max": "0.0001"}]}
    tenant.apply(third)
    failed = tenant.wait_for(
        "travel",
        lambda job: run_of(job).get("number") == 3 and (run_of(job).get("gate") or {}).get("verdict") == "Failed",
        420,
        "run 3 to fail its gate",
    )
    assert condition(failed, "Promoted") == "False"
    assert status(failed)["endpoint"]["run"] == 2
    assert status(failed)["model"]["run"] == 2

    with asking(tenant) as failures:
        third["spec"]["serving"]["run"] = 1
        tenant.apply(third)
        tenant.wait_for("travel", lambda job: status(job)["endpoint"]["run"] == 1, 240, "run 1 back in service")
    assert failures == []


def test_delete_uninstall_reinstall(product: Product, tenant: Tenant) -> None:
    tenant.apply(travel_job("travel"), travel_job("other", serving={"replicas": 0}))
    tenant.wait_ready("travel")
    tenant.wait_ready("other")
    jobs_before = uids(tenant)

    tenant.kubectl("delete", "finetunejob", "travel", "--timeout=60s", namespace=tenant.name, timeout=90)
    tenant.kubectl.wait_until(
        lambda: (
            not any(
                tenant.children(kind, "travel") for kind in ("jobs", "pods", "deployments", "services", "configmaps")
            )
        ),
        120,
        "the children to go",
        tenant.name,
    )
    assert list(tenant.models.glob("*/travel/runs/1-*/model/adapter_model.safetensors")), "the model must stay"

    product.uninstall()
    assert tenant.kubectl.get("crd", "finetunejobs.finetune-operator.io")
    assert run_of(tenant.job("other"))["number"] == 1
    product.install()
    after = tenant.wait_ready("other")
    assert run_of(after)["number"] == 1
    assert uids(tenant) == jobs_before, "no stage ran again"


def uids(tenant: Tenant) -> set[str]:
    return {job["metadata"]["uid"] for job in tenant.children("jobs", "other")}
