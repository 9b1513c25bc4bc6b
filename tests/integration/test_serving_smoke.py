"""A new server is ready when its model has answered the smoke test, and ends with the reason when it has not."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_serving_engine import wait_for
from tests.tiny_models import make_tiny_adapter, make_tiny_chat_model

from finetune_api.conditions import FailureReason
from finetune_api.reports import parse_summary
from finetune_api.rollout import SmokeTest
from finetune_api.tasks import Task
from finetune_operator.builders.server import ASK_VLLM
from finetune_trainer.serving import Engine, Metrics, ServerConfig, serve
from finetune_trainer.serving.server import question_of
from finetune_trainer.serving.smoke import SmokeFailedError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    root = tmp_path_factory.mktemp("smoke")
    base = make_tiny_chat_model(root / "base")
    adapter = make_tiny_adapter(base, root / "adapter")
    return ServerConfig(
        base_dir=base, adapter_dir=adapter, base_name="base", tuned_name="tuned", threads=1, host="127.0.0.1", port=0
    )


@pytest.mark.parametrize("task", [Task.CHAT, Task.COMPLETION])
def test_a_model_that_answers_is_ready(config: ServerConfig, task: Task) -> None:
    asked = replace(config, question="What is in Lisbon?")
    engine = Engine(asked, Metrics(), question=question_of(asked, task))
    engine.start()
    try:
        wait_for(lambda: engine.ready or not engine.alive)
        assert engine.ready, engine.failure
    finally:
        engine.stop()


@pytest.mark.parametrize("prompt", ["What is in Lisbon?", "é🚢 " * 1300], ids=["short", "longer than the context"])
def test_another_answer_ends_the_server_with_what_it_was(config: ServerConfig, prompt: str) -> None:
    smoke = SmokeTest(prompt=prompt, contains="an answer that this model does not know")
    with pytest.raises(SmokeFailedError, match="does not contain 'an answer that this model") as caught:
        serve(replace(config, smoke=smoke))
    assert caught.value.reason is FailureReason.SMOKE_FAILED


def test_an_answer_of_the_user_s_words_will_do(config: ServerConfig) -> None:
    with pytest.raises(SmokeFailedError) as caught:
        serve(replace(config, smoke=SmokeTest(prompt="Hello", contains="\0")))
    said = caught.value.message.split("it is ", 1)[1].strip("'\".")[:3]
    asked = replace(config, smoke=SmokeTest(prompt="Hello", contains=said))
    engine = Engine(asked, Metrics(), question=question_of(asked, Task.CHAT))
    engine.start()
    wait_for(lambda: engine.ready or not engine.alive)
    engine.stop()
    assert engine.failure is None


# --- vLLM: its startup probe, exactly as it stands in the Deployment, against a server that answers as told ---------


@contextmanager
def answering(code: int, body: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            text = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions", asked
    finally:
        server.shutdown()
        server.server_close()


def chat(content: str | None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content, **more}}]}


def probe(tmp_path: Path, url: str, **wanted: Any) -> tuple[int, str, int | None]:
    """Exit code of the probe, the last words that it left, and how its server ended (None: it goes on)."""
    victim = subprocess.Popen(["sleep", "60"])
    words = tmp_path / "termination-log"
    words.write_text("")
    defaults = {"prompt": None, "contains": None, "report": str(tmp_path / "none"), "chat": True, "model": "tuned"}
    hidden = {"words": str(words), "process": victim.pid, "tokens": 128, "timeout": 20}
    given = json.dumps({**defaults, **hidden, "url": url, **wanted})
    try:
        done = subprocess.run(["python3", "-c", ASK_VLLM, given], capture_output=True, text=True, timeout=60)
        ended = victim.wait(20) if words.read_text() else victim.poll()
        return done.returncode, words.read_text(), ended
    finally:
        victim.kill()
        victim.wait()


def test_vllm_is_ready_when_it_has_answered_a_held_out_question(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"samples": [{"prompt": "What is in Lisbon?"}]}))
    with answering(200, chat("Trams.")) as (url, asked):
        assert probe(tmp_path, url, report=str(tmp_path / "report.json")) == (0, "", None)
    assert asked[0]["messages"] == [{"role": "user", "content": "What is in Lisbon?"}]
    assert asked[0]["temperature"] == 0


@pytest.mark.parametrize(
    ("code", "body", "contains", "said"),
    [
        (200, chat(" "), None, "the answer is empty"),
        (200, chat(None), None, "the answer is empty"),
        (200, chat("Boats."), "trams", "does not contain 'trams'"),
        (404, {"error": {"message": "no model tuned"}}, None, "refused the question with 404"),
    ],
)
def test_vllm_with_another_answer_is_ended_with_the_reason(
    tmp_path: Path, code: int, body: Any, contains: str | None, said: str
) -> None:
    with answering(code, body) as (url, _):
        exit_code, words, ended = probe(tmp_path, url, contains=contains)
    summary = parse_summary(words)
    assert summary is not None
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.SMOKE_FAILED
    assert said in summary.failure.message
    assert (exit_code, ended) == (1, -15)


def test_a_call_of_a_tool_is_an_answer(tmp_path: Path) -> None:
    with answering(200, chat(None, tool_calls=[{"function": {"name": "book"}}])) as (url, _):
        assert probe(tmp_path, url, contains="book") == (0, "", None)


@pytest.mark.parametrize(("code", "body"), [(503, {}), (429, {}), (200, {"half": "written"})])
def test_vllm_that_does_not_answer_yet_is_asked_again(tmp_path: Path, code: int, body: Any) -> None:
    with answering(code, body) as (url, _):
        assert probe(tmp_path, url) == (1, "", None)
    assert probe(tmp_path, url) == (1, "", None), "nothing listens any more"
