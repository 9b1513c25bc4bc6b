"""A task that is no chat, on the cluster: a spreadsheet kept in Git becomes a classifier that answers, and that goes
to a registry and, as a graph for small devices, to the claim."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.network import GATEWAY
from tests.e2e.manifests import FILLERS, TICKETS, travel_job
from tests.e2e.product import Product, Tenant, condition, run_of, status
from tests.servers import PASSWORD, USER, Server, registry

STAGE = "finetune-operator.io/stage"
LOGIN = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry"}}


@pytest.fixture
def own_registry(product: Product, tenant: Tenant, tmp_path: Path) -> Iterator[Server | None]:
    """A registry that the pods of our own node reach; other clusters may not reach this machine."""
    if not tenant.cluster.is_local:
        yield None
        return
    with registry(tmp_path / "registry", address=GATEWAY) as server:
        tenant.apply({**LOGIN, "stringData": {"username": USER, "password": PASSWORD}})
        yield server


def spreadsheet() -> str:
    """120 different lines of two columns, which are not called as we call them."""
    rows = [
        f'"{first} {word} {second}, {third}",{subject}'
        for subject, words in TICKETS.items()
        for word in words
        for first in FILLERS
        for second, third in itertools.pairwise(FILLERS)
    ]
    return "\n".join(["ticket,department", *rows]) + "\n"


def test_a_spreadsheet_in_a_config_map_becomes_a_classifier(
    product: Product, tenant: Tenant, own_registry: Server | None
) -> None:
    data = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tickets"}}
    tenant.apply({**data, "data": {"tickets.csv": spreadsheet()}})
    exports = [{"name": "edge", "format": "ONNX"}]
    if own_registry:
        to = f"oci+http://{own_registry.host}/team/tickets"
        exports.append({"name": "whole", "to": to, "secretRef": {"name": "registry"}})
    job = travel_job(
        "tickets",
        task="Classification",
        baseModel={"source": "pvc://sources/tiny-encoder"},
        dataset={
            "train": {"configMapRef": {"name": "tickets", "key": "tickets.csv"}},
            "validation": {"fraction": 0.2},
            "columns": {"text": "ticket", "label": "department"},
        },
        evaluation={"gate": {"rules": [{"metric": "accuracy", "min": "0.9"}, {"metric": "macroF1", "min": "0.9"}]}},
        output={"claimName": "models", "exports": exports},
    )
    tenant.apply(job)
    ready = tenant.wait_ready("tickets")
    scores = run_of(ready)["evaluation"]
    assert scores["tuned"]["accuracy"] > scores["base"]["accuracy"]
    assert {each["label"] for each in run_of(ready)["dataset"]["labels"]} == set(TICKETS)
    assert condition(ready, "Serving") == "True"

    endpoint = status(ready)["endpoint"]
    service = endpoint["url"].split("//")[1].split(".")[0]
    with tenant.kubectl.port_forward(f"service/{service}", 8000, tenant.name) as port:
        body = {"model": endpoint["model"], "input": ["my courier please, late", "the refund again, my"]}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/classify", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert [each["label"] for each in answer.json()["data"]] == ["delivery", "billing"]

    [pod] = [each for each in tenant.children("pods", "tickets") if each["metadata"]["labels"][STAGE] == "Package"]
    assert pod["status"]["phase"] == "Succeeded"
    assert condition(ready, "Packaged") == "True"
    done = {each["name"]: each for each in run_of(ready)["package"]["exports"]}
    assert done["edge"]["difference"] < 1e-3
    assert done["edge"]["agreement"] == 1
    folder = done["edge"]["uri"].removeprefix("pvc://models/")
    assert {f"{folder}/model.onnx", f"{folder}/manifest.json"} <= set(tenant.cluster.files(tenant.name, "models"))
    if own_registry:
        tag = done["whole"]["uri"].rpartition(":")[2]
        answer = httpx.head(
            f"{own_registry.url}/v2/team/tickets/manifests/{tag}",
            auth=(USER, PASSWORD),
            headers={"Accept": "application/vnd.oci.image.index.v1+json"},
        )
        assert answer.headers["Docker-Content-Digest"] == done["whole"]["digest"]
