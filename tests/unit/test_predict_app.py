"""The predicting server over HTTP with a task of the test's own: the forms of its answers and of its errors."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from tests.counting_task import BOUND, CONFIG, CONTEXT, Asked, Counting, load, row, wait_for

from finetune_trainer.serving import predict_engine
from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.lifecycle import Lifecycle
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.predict_app import create_predict_app
from finetune_trainer.serving.predict_engine import PredictEngine
from finetune_trainer.serving.predictor import (
    MAX_ITEMS,
    PredictModel,
)


@pytest.fixture
def counting() -> Counting:
    return Counting()


@asynccontextmanager
async def client_of(engine: PredictEngine, lifecycle: Lifecycle | None = None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_predict_app(engine.config, engine, lifecycle)
    async with app.router.lifespan_context(app):
        await asyncio.to_thread(wait_for, lambda: engine.ready or not engine.alive)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=BOUND) as client:
            yield client


@pytest.fixture
async def client(counting: Counting) -> AsyncIterator[httpx.AsyncClient]:
    counting.gate.set()
    async with client_of(PredictEngine(CONFIG, Metrics(), counting, load)) as client:
        yield client


async def test_an_answer_has_an_entry_for_each_text(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/count", json={"model": "tuned", "input": ["one three", "of"], "user": "me"})
    assert answer.json() == {
        "object": "list",
        "model": "tuned",
        "data": [{"index": 0, "text": "one three", "letters": [3, 5]}, {"index": 1, "text": "of", "letters": [2]}],
        "usage": {"prompt_tokens": 10, "total_tokens": 10},
    }
    text = (await client.get("/metrics")).text
    assert 'finetune_server_requests_total{code="200",model="tuned",route="/v1/count"} 1.0' in text
    assert 'finetune_server_prompt_tokens_total{model="tuned"} 10.0' in text


async def test_models_and_probes(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["tuned"]
    assert models[0]["metadata"] == {"run": 7, "kind": "tuned", "labels": ["a", "b"]}
    assert (models[0]["parent"], models[0]["max_model_len"]) == ("base", CONTEXT)
    assert (await client.get("/v1/models/tuned")).json()["id"] == "tuned"
    assert (await client.get("/healthz")).json() == {"status": "ok", "run": 7, "models": ["tuned"]}
    assert (await client.get("/readyz")).json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "says"),
    [
        (b"{", 400, "invalid_json", None, "not valid JSON"),
        (b"[]", 400, "invalid_json", None, "must be a JSON object"),
        (b'{"input": "a"}', 400, "missing_required_parameter", "model", "Missing required parameter"),
        (b'{"model": "tuned"}', 400, "missing_required_parameter", "input", "Missing required parameter"),
        (b'{"model": "tuned", "input": "a", "n": 2}', 400, "unknown_parameter", "n", "Unrecognized"),
        (b'{"model": "tuned", "input": [3]}', 400, "invalid_value", "input[0]", "valid string"),
        (b'{"model": "tuned", "input": []}', 400, "empty_input", "input", "at least one text"),
        (b'{"model": "tuned", "input": ["a", " "]}', 400, "empty_input", "input[1]", "nothing to judge"),
        (b'{"model": "tuned", "input": "01234567890"}', 400, "context_length_exceeded", "input[0]", "reads 10 at most"),
        (b'{"model": "other", "input": "a"}', 404, "model_not_found", "model", "Served: tuned."),
        (b'{"model": "base", "input": "a"}', 404, "model_not_found", "model", "has not learned this task"),
        (b'{"model": "tuned", "input": "bad"}', 500, "internal_error", None, "log has the details"),
        (b"x" * 2001, 413, "request_too_large", None, "2000 bytes"),
    ],
)
async def test_errors_have_the_form_that_openai_clients_know(
    client: httpx.AsyncClient, body: bytes, status: int, code: str, param: str | None, says: str
) -> None:
    answer = await client.post("/v1/count", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert says in error["message"]


async def test_too_many_texts_are_refused_by_name(client: httpx.AsyncClient) -> None:
    many = {"model": "tuned", "input": ["a"] * (MAX_ITEMS + 1)}
    error = (await client.post("/v1/count", json=many)).json()["error"]
    assert (error["code"], error["param"]) == ("too_many_items", "input")
    assert f"{MAX_ITEMS} in one request" in error["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/count", 405), ("POST", "/v1/classify", 404)])
async def test_routes_that_are_not_there(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


async def test_while_draining_it_answers_but_is_not_ready_and_while_closing_it_refuses(counting: Counting) -> None:
    counting.gate.set()
    lifecycle = Lifecycle()
    request = {"model": "tuned", "input": "a"}
    async with client_of(PredictEngine(CONFIG, Metrics(), counting, load), lifecycle) as client:
        lifecycle.draining = True
        assert (await client.get("/readyz")).status_code == 503
        answer = await client.post("/v1/count", json=request)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        lifecycle.closing = True
        refused = await client.post("/v1/count", json=request)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


async def test_before_the_model_is_loaded_requests_are_told_to_come_back(counting: Counting) -> None:
    loaded = threading.Event()

    def slowly(config: ServerConfig) -> PredictModel:
        assert loaded.wait(BOUND)
        return load(config)

    engine = PredictEngine(CONFIG, Metrics(), counting, slowly)
    app = create_predict_app(CONFIG, engine)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            assert (await client.get("/readyz")).json() == {"status": "loading"}
            assert (await client.post("/v1/count", json={"model": "tuned", "input": "a"})).status_code == 503
            assert (await client.get("/v1/models")).status_code == 503
        loaded.set()


async def test_a_request_that_takes_too_long_is_told_so(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, request_timeout_seconds=1000)
    engine = PredictEngine(config, Metrics(), counting, load)
    async with client_of(engine) as client:
        first = asyncio.create_task(client.post("/v1/count", json={"model": "tuned", "input": "a"}))
        await asyncio.to_thread(counting.entered.acquire, timeout=BOUND)
        second = asyncio.create_task(client.post("/v1/count", json={"model": "tuned", "input": "b"}))
        await asyncio.to_thread(
            wait_for, lambda: engine.metrics.registry.get_sample_value("finetune_server_queue_depth") == 1
        )
        late = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000)
        monkeypatch.setattr(predict_engine, "time", late)
        counting.gate.set()
        answers = [await first, await second]
    assert answers[-1].status_code == 504
    assert answers[-1].json()["error"]["code"] == "timeout"


async def test_concurrent_requests_get_their_own_answers(client: httpx.AsyncClient) -> None:
    words = ["a" * length for length in (1, 5, 3, 9)] * 8
    answers = await asyncio.gather(
        *(client.post("/v1/count", json={"model": "tuned", "input": word}) for word in words)
    )
    assert [answer.json()["data"][0]["letters"] for answer in answers] == [[len(word)] for word in words]


async def test_a_client_that_leaves_is_not_waited_for(counting: Counting) -> None:
    engine = PredictEngine(CONFIG, Metrics(), counting, load)
    app = create_predict_app(CONFIG, engine)
    left = asyncio.Event()
    body = b'{"model": "tuned", "input": "gone"}'
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/count",
        "raw_path": b"/v1/count",
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("server", 80),
        "client": ("client", 1),
    }
    async with app.router.lifespan_context(app):
        await asyncio.to_thread(wait_for, lambda: engine.ready)
        blocking = Asked(engine, row(1))
        await asyncio.to_thread(counting.entered.acquire, timeout=BOUND)
        answering = asyncio.create_task(app(scope, receive, send))
        depth = "finetune_server_queue_depth"
        await asyncio.to_thread(wait_for, lambda: engine.metrics.registry.get_sample_value(depth) == 1)
        left.set()
        await asyncio.wait_for(answering, BOUND)
        counting.gate.set()
        last = Asked(engine, row(1, 2))
        assert (await asyncio.to_thread(blocking.result), await asyncio.to_thread(last.result)) == ([1], [2])
    assert sent[0]["status"] == 499
    assert counting.batches == [[1], [2]], "the request of the client that left was predicted all the same"
