"""Completion by every method, through the real stages to a served answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from starlette.testclient import TestClient
from tests.cells import run_cell, wait_ready
from tests.tiny_models import make_tiny_chat_model
from tests.trained_runs import completions, one_thread

from finetune_api.spec import MethodType, Task
from finetune_trainer.serving.app import create_app
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.stages import serve


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_tiny_chat_model(root / "tiny")
    return root


@pytest.mark.parametrize("method", list(MethodType))
def test_completion_is_trained_evaluated_and_served(method: MethodType, models: Path, tmp_path: Path) -> None:
    rate = 5e-3 if method is MethodType.FULL else 1e-2
    train, held_out = completions(48), completions(12, 100)
    cell = run_cell(tmp_path, models, Task.COMPLETION, method, train, held_out, epochs=8, rate=rate)
    assert cell.value("tuned", "loss") < cell.value("base", "loss") / 2
    assert cell.value("tuned", "tokenAccuracy") > cell.value("base", "tokenAccuracy")
    assert cell.value("tuned", "perplexity") < cell.value("base", "perplexity")
    sample = cell.report.samples[0]
    assert sample.prompt in {row["prompt"] for row in held_out}
    assert sample.tuned != sample.base
    engine = Engine(serve.server_config(cell.context, "127.0.0.1", 8000), Metrics())
    with TestClient(create_app(engine.config, engine), base_url="http://server") as http:
        wait_ready(http, engine)
        client = openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http, max_retries=0)
        for model, said in (("travel", sample.tuned), ("tiny", sample.base)):
            answer = client.completions.create(model=model, prompt=sample.prompt, max_tokens=128, temperature=0)
            # The server keeps back the half of a letter at the limit.
            assert answer.choices[0].text.strip().rstrip("�") == said.strip().rstrip("�"), model
