"""From `kubectl apply` to an answer: what the product is for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.cluster.network import GATEWAY
from tests.e2e.manifests import SHARED_TRAVEL, travel_job
from tests.e2e.product import Job, Product, Tenant, condition, run_of, status
from tests.hub_mirror import Mirror, serving
from tests.tiny_benchmarks import arc_easy

HUB = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}}


@pytest.fixture
def benchmarks(product: Product, tenant: Tenant) -> Iterator[dict[str, Any]]:
    """Fields of a spec with a benchmark, whose data a mirror of the hub has that only our own node's pods reach."""
    if not tenant.cluster.is_local:
        yield {}
        return
    with serving(Mirror({"datasets/allenai/ai2_arc": arc_easy()}), GATEWAY) as hub:
        tenant.apply({**HUB, "stringData": {"HF_ENDPOINT": hub.url}})
        yield {
            "baseModel": {"source": "pvc://sources/tiny-base", "secretRef": {"name": "hub"}},
            "evaluation": travel_job("any")["spec"]["evaluation"] | {"benchmarks": [{"task": "arc_easy", "limit": 4}]},
        }


def test_travel_job_reaches_an_answer(product: Product, tenant: Tenant, benchmarks: dict[str, Any]) -> None:
    tenant.apply(travel_job("travel", **benchmarks))
    seen: set[int] = set()

    def watch(job: Job) -> bool:
        seen.add((run_of(job).get("progress") or {}).get("percent", 0))
        return condition(job, "Trained") == "True"

    tenant.wait_for("travel", watch, 600, "Trained")
    assert any(0 < percent < 100 for percent in seen), f"progress never grew while training: {sorted(seen)}"

    job = tenant.wait_ready("travel")
    scores = run_of(job)["evaluation"]
    assert scores["tuned"]["loss"] < scores["base"]["loss"]
    assert [(each["task"], each["questions"]) for each in scores["benchmarks"]] == (
        [("arc_easy", 4)] if benchmarks else []
    )
    assert run_of(job)["gate"]["verdict"] == "Passed"
    for kind in ("DatasetValid", "Trained", "Evaluated", "Promoted", "Serving"):
        assert condition(job, kind) == "True", kind
    row = tenant.kubectl("get", "finetunejobs", namespace=tenant.name)
    assert "100%" in row
    assert "Passed" in row
    assert "Serve" in row

    endpoint = status(job)["endpoint"]
    service = endpoint["url"].split("//")[1].split(".")[0]
    with tenant.kubectl.port_forward(f"service/{service}", 8000, tenant.name) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        assert {endpoint["model"], endpoint["baseModel"]} <= {model.id for model in client.models.list()}
        for model in (endpoint["model"], endpoint["baseModel"]):
            stream = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "What should I see in Lisbon?"}],
                max_tokens=24,
                temperature=0,
                stream=True,
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
            assert text.strip(), f"{model} said nothing"


@pytest.mark.skipif(not SHARED_TRAVEL.exists(), reason="the shared travel dataset does not lie beside the checkout")
def test_shared_travel_data_trains(product: Product, tenant: Tenant) -> None:
    dataset = {"train": {"source": "pvc://sources/travel/shared.jsonl"}, "validation": {"fraction": 0.2}}
    tenant.apply(travel_job("hotel", dataset=dataset))
    job = tenant.wait_ready("hotel")
    scores = run_of(job)["evaluation"]
    assert scores["tuned"]["loss"] < scores["base"]["loss"]
