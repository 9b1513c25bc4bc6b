"""Seq2Seq by every method: an encoder-decoder learns to translate, is evaluated and served."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient
from tests.cells import Cell, run_cell
from tests.prepared_runs import Laptop, lines, rows
from tests.tiny_models import make_tiny_chat_model
from tests.tiny_seq2seq import make_tiny_seq2seq, pairs
from tests.trained_runs import one_thread

from finetune_api.conditions import ExitCode, FailureReason, Stage
from finetune_api.dataset import Columns
from finetune_api.spec import Hyperparameters, MethodType, Task
from finetune_trainer.serving.app import create_app
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.stages import serve

BOUND = 60.0  # seconds after which a wait is a failure
TRAIN, HELD_OUT = pairs(90), pairs(30, 90)


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a base `tiny` each."""
    root = tmp_path_factory.mktemp("bases")
    for family, steps in (("t5", 250), ("bart", 150), ("marian", 250)):
        make_tiny_seq2seq(root / family / "tiny", family, copying=steps)
    make_tiny_chat_model(root / "llama" / "tiny")
    return {folder.name: folder for folder in root.iterdir()}


def translator(root: Path, models: Path, method: MethodType, data: list[dict[str, str]], epochs: int) -> Cell:
    rate = 5e-3 if method is MethodType.FULL else 1e-2
    return run_cell(root, models, Task.SEQ2SEQ, method, data, HELD_OUT, epochs=epochs, rate=rate)


@contextmanager
def served(cell: Cell) -> Iterator[openai.OpenAI]:
    config = serve.server_config(cell.context, "127.0.0.1", 8000)
    engine = Engine(config, Metrics())
    with TestClient(create_app(config, engine), base_url="http://server") as http:
        end = time.monotonic() + BOUND
        while http.get("/readyz").status_code != 200:
            assert engine.alive, engine.failure
            assert time.monotonic() < end
        yield openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http, max_retries=0)


CELLS = [
    *(("bart", method) for method in MethodType),
    ("t5", MethodType.LORA),
    ("t5", MethodType.FULL),
    ("marian", MethodType.LORA),
]


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_a_translator_is_trained_evaluated_and_served(
    models: dict[str, Path], tmp_path: Path, family: str, method: MethodType
) -> None:
    cell = translator(tmp_path, models[family], method, TRAIN, epochs=16)
    assert cell.trained.model is not None
    for metric in ("bleu", "chrf", "rougeL", "tokenAccuracy"):
        assert cell.value("tuned", metric) > cell.value("base", metric), metric
    assert cell.value("tuned", "loss") < cell.value("base", "loss") / 2
    assert cell.value("tuned", "bleu") > 60
    evaluation = cell.report.evaluation
    assert evaluation.loss_difference is not None
    assert evaluation.loss_difference.low > 0
    assert (evaluation.examples, evaluation.stopped_by_itself) == (30, 1.0)
    sample = cell.report.samples[0]
    with served(cell) as client:
        for model, said in (("travel", sample.tuned), ("tiny", sample.base)):
            answer = client.completions.create(model=model, prompt=sample.prompt, max_tokens=20, temperature=0)
            assert answer.choices[0].text.strip() == said
        sources = [pair["source"] for pair in HELD_OUT]
        answers = client.completions.create(model="travel", prompt=sources, max_tokens=20, temperature=0)
        right = [a.text.strip() == pair["target"] for a, pair in zip(answers.choices, HELD_OUT, strict=True)]
        assert sum(right) >= 20
        stream = client.completions.create(
            model="travel", prompt=sample.prompt, max_tokens=20, temperature=0, stream=True
        )
        assert "".join(piece.choices[0].text for piece in stream).strip() == sample.tuned


def test_every_metric_is_reported_by_its_name(models: dict[str, Path], tmp_path: Path) -> None:
    """The status carries every metric of the task under the name that a gate uses."""
    cell = translator(tmp_path, models["t5"], MethodType.LORA, TRAIN[:32], epochs=1)
    assert cell.report.evaluation.tuned is not None
    found = cell.report.evaluation.tuned.model_dump(by_alias=True, exclude_none=True)
    assert set(found) == {"loss", "lossInterval", "perplexity", "tokenAccuracy", "bleu", "chrf", "rougeL"}


# --- what Prepare says ---------------------------------------------------------------------------------------


def prepared(root: Path, models: Path, data: list[dict[str, Any]], task: Task = Task.SEQ2SEQ, **fields: Any) -> Any:
    laptop = Laptop(root, models)
    context = laptop.context(laptop.put("train.jsonl", lines(data)), task=task, **fields)
    return (*laptop.prepare(context), context)


def test_lines_that_cannot_be_learned_are_named_with_their_numbers(models: dict[str, Path], tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [*TRAIN[:20], {"source": "the cat"}, {"source": "", "target": "le chat"}]
    code, summary, _ = prepared(tmp_path, models["t5"], [*bad, {"source": "the cat", "target": 5}])
    assert code == ExitCode.USER_INPUT
    assert summary.failure.reason == FailureReason.DATASET_INVALID
    assert {problem.check: problem.lines for problem in summary.dataset.problems} == {
        "missing_target": [21],
        "empty_source": [22],
        "target_type": [23],
    }


def test_a_special_token_in_a_text_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    code, summary, _ = prepared(tmp_path, models["t5"], [*TRAIN[:20], {"source": "a</s>b", "target": "x"}])
    assert (code, summary.dataset.problems[0].check) == (ExitCode.USER_INPUT, "special_token")


# (base, task, data, part of the message, part of the remedy)
MISFITS = [
    ("llama", Task.SEQ2SEQ, TRAIN, "no encoder and decoder", "Completion"),
    ("t5", Task.COMPLETION, [], "encoder", "Seq2Seq"),
    ("bart", Task.COMPLETION, [], "encoder", "Seq2Seq"),
    ("bart", Task.CHAT, [], "encoder", "Seq2Seq"),
    ("marian", Task.CHAT, [], "tokenizer.json", "save the tokenizer"),
]


@pytest.mark.parametrize(("base", "task", "data", "words", "remedy"), MISFITS)
def test_a_model_of_the_wrong_kind_is_refused_before_the_data_is_read(
    models: dict[str, Path], tmp_path: Path, base: str, task: Task, data: Any, words: str, remedy: str
) -> None:
    code, summary, _ = prepared(tmp_path, models[base], data, task)
    assert (code, summary.failure.reason) == (ExitCode.USER_INPUT, FailureReason.MODEL_INVALID)
    assert words in summary.failure.message
    assert remedy in summary.failure.advice


def test_each_side_is_cut_and_counted(models: dict[str, Path], tmp_path: Path) -> None:
    long = "the red cat sleeps " * 8
    data = [*TRAIN[:20], {"source": long, "target": "le chat"}, {"source": "the cat", "target": long}]
    code, summary, context = prepared(
        tmp_path, models["bart"], data, hyperparameters=Hyperparameters(max_length=16), max_lost_percent=20
    )
    assert code == 0, summary
    assert summary.dataset.truncated == 2
    found = [*rows(context, "train"), *rows(context, "validation")]
    assert max(len(row["input_ids"]) for row in found) == max(len(row["labels"]) for row in found) == 16
    assert {row[name][-1] for row in found for name in row} == {2}  # </s>


def test_the_longer_side_decides_what_auto_keeps(models: dict[str, Path], tmp_path: Path) -> None:
    long = "le chat dort " * 50  # more than 128 tokens, and the sources have 5
    data = [{"source": pair["source"], "target": f"{pair['target']} {long}"} for pair in TRAIN[:20]]
    code, summary, _ = prepared(tmp_path, models["t5"], data)
    assert code == 0, summary
    assert (summary.resolved.max_length, summary.dataset.truncated) == (256, 0)


def test_the_dataset_report_shows_both_sides(models: dict[str, Path], tmp_path: Path) -> None:
    _, _, context = prepared(tmp_path, models["t5"], TRAIN[:20])
    shown = json.loads((context.run_dir / "reports" / "dataset.json").read_text())["examples"][0]
    assert shown["example"]["target"] in [pair["target"] for pair in TRAIN]
    assert "</s>" in shown["read"]


def test_other_names_are_mapped_to_source_and_target(models: dict[str, Path], tmp_path: Path) -> None:
    laptop = Laptop(tmp_path, models["t5"])
    data = [{"en": pair["source"], "fr": pair["target"]} for pair in TRAIN[:20]]
    context = laptop.context(laptop.put("train.jsonl", lines(data)), task=Task.SEQ2SEQ)
    dataset = context.config.dataset.model_copy(update={"columns": Columns(source="en", target="fr")})
    context = replace(context, config=context.config.model_copy(update={"dataset": dataset}))
    code, summary = laptop.prepare(context)
    assert code == 0, summary
    assert context.report_path(Stage.PREPARE).exists()
    assert summary.dataset is not None
    assert summary.dataset.train_examples == 16
