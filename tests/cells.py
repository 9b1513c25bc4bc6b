"""One cell of tasks by methods: the real stages, one after the other, and the server on what they left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from starlette.testclient import TestClient

from finetune_api.conditions import Stage
from finetune_api.reports import EvaluateReport, Summary
from finetune_api.spec import Hyperparameters, MethodSpec, MethodType, Task
from finetune_trainer import frame
from finetune_trainer.context import StageContext
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.predict_app import create_predict_app
from finetune_trainer.serving.predict_engine import PredictEngine
from finetune_trainer.serving.predict_table import PREDICTORS
from finetune_trainer.serving.predict_weights import load_predict_model
from finetune_trainer.stages import serve
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.tasks.table import KINDS
from finetune_trainer.training.inputs import FACTS
from tests.prepared_runs import Laptop, lines

BOUND = 60.0  # seconds after which a wait is a failure
RATE = 1e-2  # of tiny models, which bear and need it
OWN_RATE = {MethodType.FULL: 2e-5}  # of the method; 2e-4 for adapters


@dataclass(frozen=True)
class Cell:
    """A finished run."""

    context: StageContext
    prepared: Summary
    trained: Summary
    report: EvaluateReport

    def value(self, model: str, metric: str) -> float:
        found: float = getattr(self.report.evaluation, model).model_dump(by_alias=True)[metric]
        return found


def run_cell(
    root: Path,
    models: Path,
    task: Task,
    method: MethodType,
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    *,
    epochs: int = 8,
    rate: float = RATE,
    lost: int = 5,
    **hyperparameters: Any,
) -> Cell:
    """Prepare, train, evaluate and export (one whole model, which the stage itself compares with what was trained) with
    the base `tiny` of `models`. `lost`: percent that may be cut."""
    laptop = Laptop(root, models)
    context = laptop.context(
        laptop.put("train.jsonl", lines([dict(row) for row in train])),
        laptop.put("validation.jsonl", lines([dict(row) for row in validation])),
        task=task,
        max_lost_percent=lost,
        hyperparameters=Hyperparameters(
            epochs=epochs,
            batch_size=16,
            learning_rate_multiplier=f"{rate / OWN_RATE.get(method, 2e-4):.6g}",
            evaluation_steps=100,
            **hyperparameters,
        ),
    )
    spec = MethodSpec(type=method, rank=8 if method.adapter else None)
    context = replace(context, config=context.config.model_copy(update={"method": spec}))
    summaries = []
    with patch.dict(os.environ, FINETUNE_PACKAGE='{"exports": [{"name": "whole"}]}'):
        for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE, Stage.PACKAGE):
            message = root / "termination-log"
            assert frame.run_stage(stage, context, message) == 0, message.read_text()
            summaries.append(Summary.model_validate_json(context.report_path(stage).read_bytes()))
    report = EvaluateReport.model_validate_json((context.evaluation_dir / "report.json").read_bytes())
    return Cell(context, summaries[0], summaries[1], report)


@contextmanager
def served(context: StageContext) -> Iterator[TestClient]:
    """The run's server, ready."""
    task = context.config.task
    facts = Facts.from_json((context.model_dir / FACTS).read_text(encoding="utf-8"))
    config = serve.server_config(context, "127.0.0.1", 8000)
    engine = PredictEngine(
        config, Metrics(), PREDICTORS[task], lambda settings: load_predict_model(settings, KINDS[task], facts)
    )
    with TestClient(create_predict_app(config, engine)) as client:
        wait_ready(client, engine)
        yield client


def wait_ready(client: TestClient, engine: Engine | PredictEngine) -> None:
    """Until the server has loaded its models."""
    end = time.monotonic() + BOUND
    while client.get("/readyz").status_code != 200:
        assert engine.alive, engine.failure
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def asked(client: TestClient, route: str, question: Any) -> list[dict[str, Any]]:
    """The answers to one request."""
    answer = client.post(route, content=json.dumps({"model": "travel", "input": question}))
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data
