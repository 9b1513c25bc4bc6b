"""Live progress by the stock protocol of transformers (KEP-2779), received by a real HTTP server."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.trained_runs import make_run, one_thread
from transformers.integrations import KubeflowCallback

from finetune_trainer.errors import InterruptedStageError
from finetune_trainer.stages import train
from finetune_trainer.training.sft import SftTrainer

Posts = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def posts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Posts]:
    """What arrives: (Authorization header, trainerStatus)."""
    received: Posts = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append((self.headers["Authorization"], body["trainerStatus"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    (tmp_path / "token").write_text("projected")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"http://127.0.0.1:{server.server_port}/progress")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    monkeypatch.setattr(KubeflowCallback, "_MIN_UPDATE_INTERVAL", 0.0)  # every step, not every five seconds
    with one_thread():
        yield received
    server.shutdown()
    thread.join()
    server.server_close()


def metrics(status: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in status.get("metrics", [])}


def test_progress_goes_on_where_it_was(tmp_path: Path, posts: Posts, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_run(tmp_path)
    stock = SftTrainer.training_step

    def interrupted(self: SftTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SftTrainer, "training_step", interrupted)
        with pytest.raises(InterruptedStageError):
            train.run(context)
    first = list(posts)
    posts.clear()
    train.run(context)
    assert {header for header, _ in [*first, *posts]} == {"Bearer projected"}
    assert [status["progressPercentage"] for _, status in first] == [0, 10, 20, 30, 40, 50, 60]  # and never 100
    assert [status["progressPercentage"] for _, status in posts] == [60, 70, 80, 90, 99, 100]
    last = metrics(posts[-2][1])
    assert (last["current_step"], last["total_steps"], last["current_epoch"]) == ("10", "10", "2.0")
    assert float(last["loss"]) > 0
    assert float(last["eval_loss"]) > 0
    assert float(last["tokens_per_second"]) > 0
    assert int(last["checkpoint_step"]) >= 6


def test_no_receiver_no_reports(tmp_path: Path, posts: Posts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_URL")
    train.run(make_run(tmp_path))
    assert posts == []
