"""A task that is no chat, on the cluster: a spreadsheet kept in Git becomes a classifier that answers."""

from __future__ import annotations

import itertools

import httpx

from tests.e2e.manifests import FILLERS, TICKETS, travel_job
from tests.e2e.product import Product, Tenant, condition, run_of, status


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


def test_a_spreadsheet_in_a_config_map_becomes_a_classifier(product: Product, tenant: Tenant) -> None:
    data = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tickets"}}
    tenant.apply({**data, "data": {"tickets.csv": spreadsheet()}})
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
