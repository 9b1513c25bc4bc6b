"""SIGTERM fails no request: what runs is finished, new requests are taken for a moment, then it ends with 0."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from tests.tiny_models import make_tiny_chat_model

BOUND = 90.0  # seconds after which a wait is a failure
PROGRAM = """
import sys
from pathlib import Path
from finetune_trainer.serving import ServerConfig, serve
serve(ServerConfig(base_dir=Path(sys.argv[1]), base_name="tiny", host="127.0.0.1", port=int(sys.argv[2]),
                   drain_seconds=float(sys.argv[3])))
"""


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    url: str

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + BOUND
        while not condition():
            assert time.monotonic() < end, "waited too long"
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.02)

    def status(self, path: str) -> int:
        try:
            return httpx.get(self.url + path, timeout=BOUND).status_code
        except httpx.TransportError:
            return 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A long context: the answer must still be going on when the signal comes.
    return make_tiny_chat_model(tmp_path_factory.mktemp("shutdown") / "base", max_position_embeddings=4096)


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Callable[[float], Server]]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(drain_seconds: float) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-c", PROGRAM, str(model), str(port), str(drain_seconds)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        started.append(process)
        server = Server(process, f"http://127.0.0.1:{port}")
        server.wait_for(lambda: server.status("/readyz") == 200)
        return server

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(BOUND)


def test_a_running_stream_is_finished_and_new_requests_are_answered(start: Callable[[float], Server]) -> None:
    server = start(2.0)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=BOUND)
    stream = iter(client.completions.create(model="tiny", prompt="The", max_tokens=400, temperature=0, stream=True))
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for(lambda: server.status("/readyz") == 503)
    assert server.status("/healthz") == 200
    late = httpx.post(
        f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 2}, timeout=BOUND
    )
    assert late.status_code == 200
    assert late.headers["connection"] == "close"
    assert list(stream)[-1].choices[0].finish_reason == "length"
    assert server.process.wait(BOUND) == 0


def test_an_idle_keep_alive_connection_does_not_hold_it_up(start: Callable[[float], Server]) -> None:
    server = start(0.0)
    with httpx.Client() as client:
        assert client.get(f"{server.url}/healthz").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(BOUND) == 0


def test_an_interrupt_from_a_person_ends_it_without_draining(start: Callable[[float], Server]) -> None:
    server = start(10_000.0)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(BOUND) == 0


def test_models_that_cannot_be_loaded_are_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "0", "0"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BOUND, check=False)
    assert ended.returncode == 1
    assert f"cannot serve tiny from {tmp_path}" in ended.stderr
