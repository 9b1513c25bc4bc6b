"""A second run beside a served first one, a failed gate, a rollback, deletion, and a reinstallation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.manifests import pod_spec, travel_job
from tests.e2e.product import Job, Product, Tenant, condition, run_of, status

# A line for each answer and, after the first one, for each failure: until then the node's network may not have heard
# of the Service yet (kube-proxy writes its rules at most once a second), which is not what is measured.
ASKER = """
import json, time, urllib.request
question = {"model": "travel", "max_tokens": 4, "messages": [{"role": "user", "content": "What is in Lisbon?"}]}
request = urllib.request.Request(
    "http://travel-serve:8000/v1/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
)
answered = False
while True:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            json.load(answer)["choices"]
        answered = True
        print("answered", flush=True)
    except Exception as error:
        if answered:
            print("FAILED", type(error).__name__, error, flush=True)
    time.sleep(0.2)
"""


@contextmanager
def asking(tenant: Tenant) -> Iterator[list[str]]:
    """Asks the Service from inside the cluster, again and again, until the block ends; then the list has what failed.

    From inside, because a port-forward goes to one pod and would end with it.
    """
    spec = pod_spec(tenant.cluster.python_image(), ASKER)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asker"}, "spec": spec}
    tenant.apply({**pod, "spec": {**spec, "terminationGracePeriodSeconds": 1}})

    def said() -> list[str]:
        return tenant.kubectl("logs", "asker", namespace=tenant.name).splitlines()

    tenant.kubectl.wait_until(said, 90, "the first answer of the Service", tenant.name)
    failures: list[str] = []
    yield failures
    failures += [line for line in said() if line != "answered"]
    tenant.kubectl("delete", "pod", "asker", "--now", namespace=tenant.name)


def test_second_run_failed_gate_and_rollback(product: Product, tenant: Tenant) -> None:
    tenant.apply(travel_job("travel"))
    first = tenant.wait_ready("travel")
    assert status(first)["endpoint"]["run"] == 1

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
        third["spec"]["serving"] |= {"run": 1, "smokeTest": {"prompt": "What is in Lisbon?", "contains": "zyzzyva"}}
        tenant.apply(third)
        back = tenant.wait_for("travel", lambda job: result_of(job, 1) == "RolledBack", 240, "run 1 to be rolled back")
        assert status(back)["endpoint"]["run"] == 2
        assert condition(back, "Serving") == "True", "run 2 never stopped answering"
        assert condition(back, "Stalled") == "True"
        assert "does not contain 'zyzzyva'" in run_of(back)["failure"]["message"]
        del third["spec"]["serving"]["smokeTest"]
        tenant.apply(third)
        tenant.wait_for("travel", lambda job: status(job)["endpoint"]["run"] == 1, 240, "run 1 back in service")
    assert failures == []

    third["spec"]["output"]["retention"] = {"keepRuns": 1}
    tenant.apply(third)
    tidy = tenant.wait_for(
        "travel", lambda job: all(checkpoints_of(job, run) == "Removed" for run in (1, 2, 3)), 120, "no checkpoints"
    )
    assert [record["files"]["state"] for record in status(tidy)["runs"]] == ["Kept"] * 3, "pinned, promoted, present"
    kept = tenant.cluster.files(tenant.name, "models")
    assert not [file for file in kept if "/checkpoints/" in file]
    for run in (1, 2, 3):
        assert any(re.search(rf"/travel/runs/{run}-[0-9a-f]+/model/adapter_model", file) for file in kept), kept


def checkpoints_of(job: Job, number: int) -> str:
    """What became of the run's checkpoints."""
    files = next((record.get("files") or {} for record in status(job)["runs"] if record["number"] == number), {})
    return str(files.get("checkpoints"))


def result_of(job: Job, number: int) -> str:
    """How the run ended."""
    return next(str(record["result"]) for record in status(job)["runs"] if record["number"] == number)


def test_delete_uninstall_reinstall(product: Product, tenant: Tenant) -> None:
    polled = {"triggers": {"datasetPoll": {"periodSeconds": 60}}, "serving": {"replicas": 0}}
    tenant.apply(travel_job("travel"), travel_job("other", **polled))
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
    kept = tenant.cluster.files(tenant.name, "models")
    assert any(re.fullmatch(r".*/travel/runs/1-.*/model/adapter_model\.safetensors", file) for file in kept), kept

    product.uninstall()
    assert tenant.kubectl.get("crd", "finetunejobs.finetune-operator.io")
    assert run_of(tenant.job("other"))["number"] == 1
    product.install()
    after = tenant.wait_ready("other")
    assert run_of(after)["number"] == 1
    assert uids(tenant) == jobs_before, "no stage ran again"

    tenant.kubectl.wait_until(lambda: looked(tenant), 180, "a look at the data", tenant.name)
    assert condition(tenant.job("other"), "DatasetPolled") == "True"
    assert run_of(tenant.job("other"))["number"] == 1


def uids(tenant: Tenant) -> set[str]:
    """Of the Jobs of stages."""
    return {job["metadata"]["uid"] for job in tenant.children("jobs", "other") if not is_look(job)}


def looked(tenant: Tenant) -> bool:
    """Whether the other job's data was looked at."""
    return any(is_look(job) and job["status"].get("succeeded") for job in tenant.children("jobs", "other"))


def is_look(job: Job) -> bool:
    return "-poll-" in job["metadata"]["name"]
