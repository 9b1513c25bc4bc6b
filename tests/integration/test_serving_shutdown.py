"""SIGTERM fails no request: what runs is finished, new requests are taken for a moment, then it ends with 0."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import httpx
import openai
import pytest
from tests.tiny_models import make_tiny_chat_model

from finetune_trainer.serving import ServerConfig, ServingError, serve

BOUND = 90.0  # seconds after which a wait is a failure


@dataclass
class Server:
    """A server in a process of its own."""

    process: ForkServerProcess
    url: str

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + BOUND
        while not condition():
            assert time.monotonic() < end, "waited too long"
            assert self.process.exitcode is None, "the server has ended"
            time.sleep(0.02)

    def ended(self) -> int | None:
        self.process.join(BOUND)
        return self.process.exitcode

    def status(self, path: str) -> int:
        try:
            return httpx.get(self.url + path, timeout=BOUND).status_code
        except httpx.TransportError:
            return 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A long context: the answer must still be going on when the signal comes.
    return make_tiny_chat_model(tmp_path_factory.mktemp("shutdown") / "base", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Processes forked from one that has imported the server, since importing it takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["finetune_trainer.serving", "transformers.models.llama.modeling_llama"])
        yield context


@pytest.fixture
def start(model: Path, processes: ForkServerContext) -> Iterator[Callable[[float], Server]]:
    started: list[ForkServerProcess] = []

    def begin(drain_seconds: float) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = ServerConfig(
            base_dir=model, base_name="tiny", host="127.0.0.1", port=port, drain_seconds=drain_seconds, threads=1
        )
        process = processes.Process(target=serve, args=(config,))
        process.start()
        started.append(process)
        server = Server(process, f"http://127.0.0.1:{port}")
        server.wait_for(lambda: server.status("/readyz") == 200)
        return server

    yield begin
    for process in started:
        process.kill()
        process.join(BOUND)


def test_a_running_stream_is_finished_and_new_requests_are_answered(start: Callable[[float], Server]) -> None:
    server = start(8.0)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=BOUND)
    stream = iter(client.completions.create(model="tiny", prompt="The", max_tokens=400, temperature=0, stream=True))
    next(stream)
    os.kill(server.process.pid or 0, signal.SIGTERM)
    server.wait_for(lambda: server.status("/readyz") == 503)
    assert server.status("/healthz") == 200
    late = httpx.post(
        f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 2}, timeout=BOUND
    )
    assert late.status_code == 200
    assert late.headers["connection"] == "close"
    assert list(stream)[-1].choices[0].finish_reason == "length"
    assert server.ended() == 0


def test_an_idle_keep_alive_connection_does_not_hold_it_up(start: Callable[[float], Server]) -> None:
    server = start(0.0)
    with httpx.Client() as client:
        assert client.get(f"{server.url}/healthz").status_code == 200
        os.kill(server.process.pid or 0, signal.SIGTERM)
        assert server.ended() == 0


def test_an_interrupt_from_a_person_ends_it_without_draining(start: Callable[[float], Server]) -> None:
    server = start(10_000.0)
    os.kill(server.process.pid or 0, signal.SIGINT)
    assert server.ended() == 0


def test_models_that_cannot_be_loaded_are_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ServingError, match=f"cannot serve tiny from {tmp_path}"):
        serve(ServerConfig(base_dir=tmp_path, base_name="tiny", host="127.0.0.1", port=0))


def test_a_port_that_is_taken_is_told(model: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServingError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(ServerConfig(base_dir=model, base_name="tiny", host="127.0.0.1", port=port))
