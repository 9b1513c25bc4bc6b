"""The predicting server with a task of the test's own: batches, limits, faults, and the forms of its answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import httpx
import pytest

from finetune_trainer.serving import predict_engine
from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.errors import ApiError, GenerationFailed, GenerationTimeout, QueueFull, Unavailable
from finetune_trainer.serving.lifecycle import Lifecycle
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.predict_app import create_predict_app
from finetune_trainer.serving.predict_engine import BATCH_ROWS, BATCH_TOKENS, PredictEngine, Work
from finetune_trainer.serving.predictor import (
    MAX_ITEMS,
    Item,
    PredictModel,
    PredictRequest,
    check_items,
    check_length,
    check_text,
)
from finetune_trainer.tasks.kind import Facts, Row

BOUND = 30.0  # seconds after which a wait is a failure
BAD = 666  # a token that the model cannot take
CONTEXT = 10
CONFIG = ServerConfig(
    base_dir=Path("unused"), base_name="base", tuned_name="tuned", run=7, max_request_bytes=2000, max_queue=70
)


class CountRequest(PredictRequest):
    input: str | list[str]


@dataclass
class Counting:
    """Counts the letters of words: a word is a row, a text an item. Waits at a gate that the test opens."""

    route: ClassVar[str] = "/v1/count"
    sample: ClassVar[Mapping[str, Any]] = {"input": "smoke"}
    request: ClassVar[type[CountRequest]] = CountRequest
    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def items(self, wanted: CountRequest, model: PredictModel) -> list[Item]:
        texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
        check_items(len(texts))
        items = []
        for index, text in enumerate(texts):
            check_text(text, f"input[{index}]")
            rows = [row(*word.encode()) if word != "bad" else row(BAD) for word in text.split()]
            check_length(max(len(one["input_ids"]) for one in rows), model.context, f"input[{index}]")
            items.append(Item(rows, sum(len(one["input_ids"]) for one in rows), text))
        return items

    def predict(self, model: PredictModel, rows: Sequence[Row]) -> Sequence[int]:
        lengths = [len(one["input_ids"]) for one in rows]
        if rows[0]["input_ids"] != list(b"smoke"):
            self.batches.append(lengths)
            self.entered.release()
            assert self.gate.wait(BOUND)
        if any(BAD in one["input_ids"] for one in rows):
            raise ValueError("no such token")
        return lengths

    def render(self, wanted: CountRequest, model: PredictModel, item: Item, outputs: Sequence[int]) -> dict[str, Any]:
        return {"text": item.source, "letters": list(outputs)}


def row(*ids: int) -> Row:
    return {"input_ids": list(ids)}


def load(_: ServerConfig) -> PredictModel:
    return PredictModel("tuned", cast(Any, None), cast(Any, None), Facts(("a", "b"), (1, 1)), CONTEXT)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def engine(counting: Counting) -> Iterator[PredictEngine]:
    engine = PredictEngine(CONFIG, Metrics(), counting, load)
    engine.start()
    wait_for(lambda: engine.ready)
    yield engine
    counting.gate.set()
    engine.stop()


class Asked:
    """A request of the test and what became of it."""

    def __init__(self, engine: PredictEngine, *rows: Row, deadline: float = float("inf")) -> None:
        self.results: list[list[Any] | ApiError] = []
        self.work = Work(list(rows), self.results.append, deadline)
        engine.submit(self.work)

    def result(self) -> list[Any] | ApiError:
        wait_for(lambda: bool(self.results))
        return self.results[0]


def test_what_waits_while_a_batch_runs_is_the_next_batch(engine: PredictEngine, counting: Counting) -> None:
    first = Asked(engine, row(1))
    assert counting.entered.acquire(timeout=BOUND)
    others = [Asked(engine, row(*range(length)), row(7)) for length in (2, 3)]
    counting.gate.set()
    assert [first.result(), *(one.result() for one in others)] == [[1], [2, 1], [3, 1]]
    assert counting.batches == [[1], [2, 1, 3, 1]]


def test_a_batch_is_bounded_in_rows_and_in_padded_tokens(engine: PredictEngine, counting: Counting) -> None:
    counting.gate.set()
    many = Asked(engine, *(row(1) for _ in range(BATCH_ROWS + 1)))
    assert many.result() == [1] * (BATCH_ROWS + 1)
    long = row(*[0] * (BATCH_TOKENS // 2))
    huge = row(*[0] * (BATCH_TOKENS + 1))
    Asked(engine, long, long, long, huge, row(1)).result()
    assert [len(batch) for batch in counting.batches] == [BATCH_ROWS, 1, 2, 1, 1, 1]


def test_a_full_queue_takes_no_more_but_a_lone_long_request(engine: PredictEngine, counting: Counting) -> None:
    places = CONFIG.max_concurrent + CONFIG.max_queue
    lone = Asked(engine, *(row(1) for _ in range(places + 5)))
    assert counting.entered.acquire(timeout=BOUND)
    with pytest.raises(QueueFull):
        Asked(engine, row(1))
    counting.gate.set()
    assert lone.result() == [1] * (places + 5)
    wait_for(lambda: engine.metrics.registry.get_sample_value("finetune_server_running") == 0)
    assert Asked(engine, row(1)).result() == [1]


def test_only_the_request_that_breaks_fails(engine: PredictEngine, counting: Counting) -> None:
    gate = Asked(engine, row(1))
    assert counting.entered.acquire(timeout=BOUND)
    good, bad, other = Asked(engine, row(1, 2)), Asked(engine, row(5), row(BAD)), Asked(engine, row(3))
    counting.gate.set()
    assert gate.result() == [1]
    assert isinstance(bad.result(), GenerationFailed)
    assert (good.result(), other.result()) == ([2], [1])
    assert engine.alive


def test_who_has_gone_or_waits_too_long_is_not_predicted(engine: PredictEngine, counting: Counting) -> None:
    Asked(engine, row(1))
    assert counting.entered.acquire(timeout=BOUND)
    gone, late = Asked(engine, row(1, 2)), Asked(engine, row(1, 2, 3), deadline=0.0)
    last = Asked(engine, row(1, 2, 3, 4))
    gone.work.cancelled = True
    counting.gate.set()
    assert last.result() == [4]
    error = late.result()
    assert isinstance(error, GenerationTimeout)
    assert "300 seconds" in error.message
    assert counting.batches == [[1], [4]]
    assert gone.results == []


def test_stopping_answers_those_who_wait_and_takes_nobody_else(engine: PredictEngine, counting: Counting) -> None:
    Asked(engine, row(1))
    assert counting.entered.acquire(timeout=BOUND)
    waiting = Asked(engine, row(2))
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    wait_for(lambda: engine._stopping)
    with pytest.raises(Unavailable):
        Asked(engine, row(3))
    counting.gate.set()
    stopping.join(BOUND)
    assert isinstance(waiting.result(), Unavailable)
    assert not engine.ready


@pytest.mark.parametrize("broken", ["load", "smoke"])
def test_a_model_that_does_not_work_is_a_failure(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    def cannot_load(_: ServerConfig) -> PredictModel:
        raise OSError("no such folder")

    class Mute(Counting):
        def predict(self, model: PredictModel, rows: Sequence[Row]) -> Sequence[int]:
            raise OSError("no such folder")

    engine = PredictEngine(
        CONFIG, Metrics(), Mute() if broken == "smoke" else Counting(), cannot_load if broken == "load" else load
    )
    told = threading.Event()
    engine.on_failure = told.set
    engine.start()
    assert told.wait(BOUND)
    assert (str(engine.failure), engine.ready, engine.alive) == ("no such folder", False, False)
    with pytest.raises(Unavailable):
        engine.models()


# --- over HTTP ---------------------------------------------------------------------------------------------------


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
