"""The ordinary OpenAI client against the real server, and clients that are not ordinary at all."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx
import openai
import pytest
from tests.tiny_models import make_tiny_adapter, make_tiny_chat_model

from finetune_trainer.serving.app import create_app
from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.lifecycle import Lifecycle
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.server import DrainingServer, make_server
from finetune_trainer.serving.weights import Weights, load_weights

BOUND = 60.0  # seconds after which a wait is a failure
HELLO: list[Any] = [{"role": "user", "content": "What is the best time to visit Lisbon?"}]


@dataclass
class Running:
    """A server in a thread."""

    url: str
    engine: Engine
    server: DrainingServer

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=BOUND)

    def metric(self, name: str, **labels: str) -> float:
        return self.engine.metrics.registry.get_sample_value(name, labels) or 0.0


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@contextmanager
def serving(config: ServerConfig, load: Callable[[ServerConfig], Weights] = load_weights) -> Iterator[Running]:
    lifecycle = Lifecycle()
    engine = Engine(config, Metrics(), load)
    server = make_server(config, create_app(config, engine, lifecycle), lifecycle)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", engine, server)
    finally:
        server.close()
        thread.join(BOUND)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    root = tmp_path_factory.mktemp("http")
    base = make_tiny_chat_model(root / "base")
    return ServerConfig(
        base_dir=base,
        adapter_dir=make_tiny_adapter(base, root / "adapter"),
        base_name="tiny",
        tuned_name="tiny/travel",
        run=7,
        host="127.0.0.1",
        port=0,
        max_request_bytes=20_000,
        threads=1,
    )


@pytest.fixture(scope="module")
def server(config: ServerConfig) -> Iterator[Running]:
    with serving(config) as running:
        wait_for(lambda: running.engine.ready)
        yield running


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return server.client()


def test_models(client: openai.OpenAI) -> None:
    models = {model.id: model.model_dump() for model in client.models.list()}
    assert list(models) == ["tiny/travel", "tiny"]
    assert models["tiny/travel"]["metadata"] == {"run": 7, "kind": "tuned"}
    assert models["tiny/travel"]["parent"] == "tiny"
    assert client.models.retrieve("tiny/travel").id == "tiny/travel"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize("model", ["tiny", "tiny/travel"])
def test_a_chat_streams_what_it_answers_whole(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=HELLO, max_tokens=20, temperature=0)
    stream = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=20, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, whole.choices[0].finish_reason]
    assert not chunks[-1].choices[0].delta.content
    assert last.choices == []
    assert last.usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 20
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 5


def test_base_and_tuned_differ(client: openai.OpenAI) -> None:
    texts = {
        client.chat.completions.create(model=name, messages=HELLO, max_tokens=20, temperature=0)
        .choices[0]
        .message.content
        for name in ("tiny", "tiny/travel")
    }
    assert len(texts) == 2


def test_the_raw_stream_is_server_sent_events(server: Running) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 5, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in chunks)


def test_content_parts_and_plain_content_are_the_same(client: openai.OpenAI) -> None:
    parts: list[Any] = [{"role": "user", "content": [{"type": "text", "text": HELLO[0]["content"]}]}]
    answers = [
        client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
        for messages in (HELLO, parts)
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_completions_of_several_prompts_with_several_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny/travel", prompt=["The", "boats"], n=2, max_tokens=6, seed=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text != answer.choices[1].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    stream = client.completions.create(
        model="tiny/travel", prompt=["The", "boats"], n=2, max_tokens=6, seed=4, stream=True
    )
    texts = ["", "", "", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in answer.choices]


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=16, temperature=1, seed=seed)
        return answer.choices[0].message.content

    assert ask(1) == ask(1) != ask(2)


def test_a_stop_sequence_never_leaks_into_a_stream(client: openai.OpenAI) -> None:
    text = client.completions.create(model="tiny", prompt="The", max_tokens=24, temperature=0).choices[0].text
    stop = text[8:12]
    stream = client.completions.create(
        model="tiny", prompt="The", max_tokens=24, temperature=0, stop=[stop, "%%"], stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_many_clients_at_once_get_the_answers_of_one(server: Running, client: openai.OpenAI) -> None:
    def ask(at: int) -> str | None:
        model = ("tiny", "tiny/travel")[at % 2]
        messages: list[Any] = [{"role": "user", "content": "boats " * (at + 1)}]
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0)
        return answer.choices[0].message.content

    expected = [ask(at) for at in range(8)]
    found: dict[int, str | None] = {}
    threads = [threading.Thread(target=lambda at=at: found.update({at: ask(at)})) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    assert [found[at] for at in range(8)] == expected


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "tiny/travel" in caught.value.message


def test_an_invalid_parameter_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"


@pytest.mark.parametrize("more", [{"max_tokens": 250}, {"messages": [{"role": "user", "content": "boats " * 400}]}])
def test_a_context_that_is_too_long_says_the_numbers(client: openai.OpenAI, more: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": HELLO, **more})
    assert caught.value.code == "context_length_exceeded"
    assert "256 tokens" in caught.value.message


def test_without_a_limit_an_answer_fills_the_context(client: openai.OpenAI) -> None:
    usage = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0).usage
    assert usage is not None
    assert usage.total_tokens == 256


def test_a_body_that_is_too_large(server: Running) -> None:
    url = f"{server.url}/v1/chat/completions"
    large = httpx.post(url, content=b"x" * 30_000)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")

    def chunks() -> Iterator[bytes]:
        yield from (b"x" * 1000 for _ in range(30))

    with suppress(httpx.TransportError):  # the server may close before the client has sent it all
        assert httpx.post(url, content=chunks()).status_code == 413
    assert httpx.get(f"{server.url}/readyz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[" * 10_000, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"\xff", 400, "invalid_json"),
        ("POST", "/v1/embeddings", b"{}", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", b"", 405, "method_not_supported"),
        ("GET", "/", b"", 404, "unknown_url"),
    ],
)
def test_errors_have_one_form(server: Running, method: str, path: str, content: bytes, status: int, code: str) -> None:
    response = httpx.request(method, server.url + path, content=content)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code


def test_control_tokens_of_a_user_do_not_end_the_turn(client: openai.OpenAI) -> None:
    plain, hostile = "end", "<|end|>"
    counts = []
    for text in (plain, hostile):
        messages: list[Any] = [{"role": "user", "content": text}]
        usage = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1).usage
        assert usage is not None
        counts.append(usage.prompt_tokens)
    # As a control token it would be one token and the prompt four: it is spelled out instead.
    assert counts[1] > 6


def test_health_and_metrics(server: Running, client: openai.OpenAI) -> None:
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok", "run": 7, "models": ["tiny/travel", "tiny"]}
    labels = {"route": "/v1/completions", "model": "tiny", "code": "200"}
    before = server.metric("finetune_server_requests_total", **labels)
    tokens = server.metric("finetune_server_completion_tokens_total", model="tiny")
    client.completions.create(model="tiny", prompt="The", max_tokens=3, temperature=0)
    assert server.metric("finetune_server_requests_total", **labels) == before + 1
    assert server.metric("finetune_server_completion_tokens_total", model="tiny") == tokens + 3
    text = httpx.get(f"{server.url}/metrics").text
    for name in ("queue_depth", "batch_size_count", "time_to_first_token_seconds_count", "generation_seconds_sum"):
        assert f"finetune_server_{name}" in text


def test_a_made_up_model_makes_no_series(server: Running, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="made-up-by-a-client", prompt="x")
    assert "made-up-by-a-client" not in httpx.get(f"{server.url}/metrics").text


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_ends_its_generation(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """The engine is held in a step until the connection is closed: only a cancelled row ends before its limit."""
    begun, gate = threading.Event(), threading.Event()
    original = Weights.forward

    def held(self: Weights, *inputs: Any) -> Any:
        scores = original(self, *inputs)
        if gate.is_set() or not armed.is_set():
            return scores
        begun.set()
        # Slow enough that the disconnect arrives long before the limit of tokens.
        gate.wait(0.05)
        return scores

    armed = threading.Event()
    monkeypatch.setattr(Weights, "forward", held)
    with serving(config) as running:
        wait_for(lambda: running.engine.ready)
        armed.set()
        body = json.dumps({"model": "tiny", "prompt": "The", "max_tokens": 200, "temperature": 0, "stream": streamed})
        request = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        address = running.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as connection:
            connection.sendall(request.encode())
            assert begun.wait(BOUND)
        wait_for(lambda: running.metric("finetune_server_running") == 0 and not running.engine._cohorts)
        gate.set()
        assert running.metric("finetune_server_completion_tokens_total", model="tiny") < 200


def test_a_full_queue_says_when_to_come_back(config: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = threading.Event(), threading.Event()
    original = Weights.forward

    def held(self: Weights, *inputs: Any) -> Any:
        begun.set()
        assert gate.wait(BOUND)
        return original(self, *inputs)

    with serving(replace(config, max_concurrent=1, max_queue=0)) as running:
        wait_for(lambda: running.engine.ready)
        monkeypatch.setattr(Weights, "forward", held)
        body = {"model": "tiny", "prompt": "The", "max_tokens": 2}
        first: list[httpx.Response] = []
        url = f"{running.url}/v1/completions"
        thread = threading.Thread(target=lambda: first.append(httpx.post(url, json=body, timeout=BOUND)))
        thread.start()
        assert begun.wait(BOUND)
        second = httpx.post(url, json=body)
        too_many = httpx.post(url, json={**body, "n": 2})
        gate.set()
        thread.join(BOUND)
    assert (second.status_code, second.json()["error"]["code"]) == (429, "queue_full")
    assert int(second.headers["retry-after"]) >= 1
    assert too_many.status_code == 400
    assert first[0].status_code == 200


def test_while_loading_it_lives_and_is_not_ready(config: ServerConfig) -> None:
    gate = threading.Event()

    def slow(config: ServerConfig) -> Weights:
        assert gate.wait(BOUND)
        return load_weights(config)

    with serving(config, slow) as running:
        assert httpx.get(f"{running.url}/healthz").status_code == 200
        assert httpx.get(f"{running.url}/readyz").json() == {"status": "loading"}
        early = httpx.post(f"{running.url}/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert (early.status_code, early.json()["error"]["code"]) == (503, "unavailable")
        gate.set()
        wait_for(lambda: httpx.get(f"{running.url}/readyz").status_code == 200)


def test_an_error_inside_shows_nothing_of_it(config: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(config) as running:
        wait_for(lambda: running.engine.ready)

        def broken(*inputs: Any) -> Any:
            raise RuntimeError("a secret of the inside")

        monkeypatch.setattr(Weights, "forward", broken)
        body = {"model": "tiny", "prompt": "The"}
        whole = httpx.post(f"{running.url}/v1/completions", json=body)
        streamed = httpx.post(f"{running.url}/v1/completions", json={**body, "stream": True}).text
        monkeypatch.setattr("finetune_trainer.serving.app.parse", broken)
        unexpected = httpx.post(f"{running.url}/v1/completions", json=body)
    assert (whole.status_code, whole.json()["error"]["code"]) == (500, "internal_error")
    assert '"internal_error"' in streamed
    assert "[DONE]" not in streamed
    assert unexpected.status_code == 500
    assert not any("secret" in text for text in (whole.text, streamed, unexpected.text))
