"""Classification by every method, through the real stages and the server, with tiny models that learn in seconds."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.cells import Cell, asked, run_cell, served
from tests.prepared_runs import Laptop, lines
from tests.tiny_encoders import make_tiny_encoder
from tests.tiny_models import make_tiny_chat_model, make_tiny_tokenizer
from tests.tiny_roberta import make_tiny_roberta
from tests.tiny_seq2seq import make_tiny_seq2seq
from tests.trained_runs import one_thread
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from finetune_api.conditions import FailureReason
from finetune_api.run_config import ServedRun
from finetune_api.spec import MethodType, Task

SUBJECTS = {"billing": ("invoice", "refund"), "delivery": ("parcel", "courier"), "login": ("password", "account")}
FILLERS = ("the", "my", "is", "was", "late", "please")
ROUTE = "/v1/classify"
TASK = Task.CLASSIFICATION
BOUND = 120.0  # seconds after which a wait is a failure


def text_about(subjects: list[str], chance: random.Random) -> str:
    """Three words that say nothing, and among them one of each subject."""
    words = [chance.choice(FILLERS) for _ in range(3)]
    for subject in subjects:
        words.insert(chance.randrange(len(words) + 1), chance.choice(SUBJECTS[subject]))
    return " ".join(words)


def one_label(count: int, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    chosen = [list(SUBJECTS)[index % 3] for index in range(count)]
    return [{"text": text_about([label], chance), "label": label} for label in chosen]


def several_labels(count: int, seed: int) -> list[dict[str, Any]]:
    """One subject, two, or none."""
    chance = random.Random(seed)
    chosen = [chance.sample(list(SUBJECTS), index % 3) for index in range(count)]
    return [{"text": text_about(labels, chance), "label": sorted(labels)} for labels in chosen]


def two_texts(count: int, seed: int) -> list[dict[str, Any]]:
    """What the second text is about decides; the first is about anything."""
    chance = random.Random(seed)
    rows = []
    for index in range(count):
        second = list(SUBJECTS)[index % 3]
        first = text_about([chance.choice(list(SUBJECTS))], chance)
        rows.append({"text": first, "text_pair": text_about([second], chance), "label": second})
    return rows


WORDS = [" ".join([*FILLERS, *(word for words in SUBJECTS.values() for word in words)])]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base `tiny`, whose head lacks a pooler, too."""
    return make_tiny_encoder(
        tmp_path_factory.mktemp("encoder") / "tiny", texts=WORDS, kind="bert-without-pooler"
    ).parent


def assert_better(cell: Cell, most_wrong: float = 0.15) -> None:
    """Tuned beats base in all metrics, and is nearly always right."""
    for metric in ("accuracy", "macroF1", "weightedF1"):
        assert cell.value("tuned", metric) > cell.value("base", metric)
        assert cell.value("tuned", metric) > 1 - most_wrong
    assert cell.value("tuned", "loss") < cell.value("base", "loss")


def right(cell: Cell, questions: list[Any], expected: list[str]) -> float:
    """Share of the questions that the server answers as expected."""
    with served(cell.context) as client:
        found = asked(client, ROUTE, questions)
    return sum(one["label"] == label for one, label in zip(found, expected, strict=True)) / len(expected)


@pytest.mark.parametrize("method", list(MethodType))
def test_every_method_learns_labels_and_serves_them(encoder: Path, tmp_path: Path, method: MethodType) -> None:
    train, held = one_label(150, seed=1), one_label(30, seed=2)
    cell = run_cell(tmp_path, encoder, TASK, method, train, held)
    assert_better(cell)
    assert right(cell, [row["text"] for row in held], [row["label"] for row in held]) == pytest.approx(
        cell.value("tuned", "accuracy")
    )
    sample = cell.report.samples[0]
    assert sample.expected in SUBJECTS
    assert sample.tuned.endswith("%)")


def test_several_labels(encoder: Path, tmp_path: Path) -> None:
    train, held = several_labels(180, seed=1), several_labels(30, seed=2)
    cell = run_cell(tmp_path, encoder, TASK, MethodType.LORA, train, held, epochs=16)
    assert_better(cell)
    with served(cell.context) as client:
        found = asked(client, ROUTE, [row["text"] for row in held])
    same = [sorted(one["labels"]) == row["label"] for one, row in zip(found, held, strict=True)]
    assert sum(same) / len(same) == pytest.approx(cell.value("tuned", "accuracy"))
    assert any(one["label"] is None for one in found), "a third of the texts has no label"


def test_two_texts(encoder: Path, tmp_path: Path) -> None:
    train, held = two_texts(180, seed=1), two_texts(30, seed=2)
    cell = run_cell(tmp_path, encoder, TASK, MethodType.LORA, train, held, epochs=16)
    assert_better(cell)
    questions = [{"text": row["text"], "text_pair": row["text_pair"]} for row in held]
    assert right(cell, questions, [row["label"] for row in held]) == pytest.approx(cell.value("tuned", "accuracy"))


def quiet_decoder(models: Path) -> Path:
    """A tiny Llama whose weights are small enough to be trained, and whose tokenizer knows the words."""
    folder = make_tiny_chat_model(models / "tiny", tokenizer=make_tiny_tokenizer(WORDS * 2))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1 / 3)
    model.save_pretrained(folder)
    return models


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_a_decoder_can_classify(tmp_path: Path, method: MethodType) -> None:
    models = quiet_decoder(tmp_path / "models")
    if method is MethodType.LORA:  # many decoders come without a padding token
        for name, key in (("tokenizer_config.json", "pad_token"), ("config.json", "pad_token_id")):
            settings = json.loads((models / "tiny" / name).read_text())
            assert settings.pop(key) is not None
            (models / "tiny" / name).write_text(json.dumps(settings))
    train, held = one_label(150, seed=1), one_label(30, seed=2)
    cell = run_cell(tmp_path, models, TASK, method, train, held, epochs=16)
    assert_better(cell)
    assert right(cell, [row["text"] for row in held], [row["label"] for row in held]) == pytest.approx(
        cell.value("tuned", "accuracy")
    )


def test_texts_longer_than_the_positions_of_a_model_whose_tokenizer_knows_no_limit(tmp_path: Path) -> None:
    """RoBERTa has two positions more than it takes tokens; many of the hub come without model_max_length."""
    folder = make_tiny_roberta(tmp_path / "models" / "tiny", ["the my is was late please invoice parcel password"])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    train, held = ([{**row, "text": " ".join([row["text"]] * 50)} for row in one_label(n, seed=n)] for n in (24, 6))
    cell = run_cell(tmp_path, folder.parent, TASK, MethodType.LORA, train, held, epochs=1, lost=100)
    assert cell.prepared.resolved is not None
    assert cell.prepared.resolved.max_length == 128
    with served(cell.context) as client:
        answer = client.post(ROUTE, content=json.dumps({"model": "travel", "input": "the " * 127}))
    assert answer.status_code == 400
    assert "128" in answer.text


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_a_base_that_was_a_classifier_of_other_labels(encoder: Path, tmp_path: Path, method: MethodType) -> None:
    folder = tmp_path / "models" / "tiny"
    AutoModelForSequenceClassification.from_pretrained(encoder / "tiny", num_labels=5).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder / "tiny").save_pretrained(folder)
    train, held = one_label(150, seed=1), one_label(30, seed=2)
    cell = run_cell(tmp_path, folder.parent, TASK, method, train, held)
    assert_better(cell)
    assert right(cell, [held[0]["text"]], [held[0]["label"]]) == 1


@pytest.mark.parametrize(
    ("train", "held", "reason", "says"),
    [
        (one_label(30, 1), [{"text": "a", "label": "eggs"}], FailureReason.DATASET_INVALID, "validation data, line 1"),
        (one_label(30, 1), [{"text": "a", "label": "eggs"}], FailureReason.DATASET_INVALID, "'eggs' does not occur"),
        ([{"text": f"a {n}", "label": "x"} for n in range(12)], None, FailureReason.DATASET_INVALID, "the only label"),
        ([*one_label(9, 1), {"text": "", "label": "login"}], None, FailureReason.DATASET_INVALID, "line 10"),
        ([*one_label(9, 1), {"text": "a", "label": ["login"]}], None, FailureReason.DATASET_INVALID, "a list here"),
        ([{"sentence": "a", "label": "x"}], None, FailureReason.DATASET_INVALID, "spec.dataset.columns"),
    ],
)
def test_data_that_cannot_be_learned_is_refused_with_its_place(
    encoder: Path, tmp_path: Path, train: Any, held: Any, reason: FailureReason, says: str
) -> None:
    laptop = Laptop(tmp_path, encoder)
    validation = laptop.put("validation.jsonl", lines(held)) if held else None
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", lines(train)), validation, task=TASK))
    assert code == 10
    assert summary.failure is not None
    assert summary.failure.reason is reason
    assert says in summary.failure.message


def test_a_base_that_writes_texts_is_refused(tmp_path: Path) -> None:
    models = tmp_path / "models"
    make_tiny_seq2seq(models / "tiny")
    laptop = Laptop(tmp_path, models)
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", lines(one_label(30, 1))), task=TASK))
    assert code == 10
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.MODEL_INVALID
    assert "it writes texts from texts" in summary.failure.message


def test_the_report_has_each_label_and_what_is_taken_for_what(encoder: Path, tmp_path: Path) -> None:
    train, held = one_label(90, seed=1), one_label(30, seed=2)
    cell = run_cell(tmp_path, encoder, TASK, MethodType.FULL, train, held, epochs=1)
    facts = json.loads((cell.context.dataset_dir / "facts.json").read_text())
    assert facts == {"labels": ["billing", "delivery", "login"], "counts": [30, 30, 30], "multi_label": False}
    details = cell.report.details
    assert [details["labels"][label]["examples"] for label in facts["labels"]] == [10, 10, 10]
    assert [sum(row) for row in details["confusion"]] == [10, 10, 10]
    taken = sum(details["confusion"][index][index] for index in range(3)) / 30
    assert taken == pytest.approx(cell.value("tuned", "accuracy"))


def test_the_server_process_answers_until_it_is_told_to_end(encoder: Path, tmp_path: Path) -> None:
    """As in a pod, which has no run.json: ready, an answer, SIGTERM, and an end with 0."""
    cell = run_cell(tmp_path, encoder, TASK, MethodType.LORA, one_label(60, seed=1), one_label(30, seed=2), epochs=1)
    told = ServedRun.from_record(cell.context.config.model_dump_json(by_alias=True)).model_dump_json(by_alias=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "finetune_trainer", "serve", "--host", "127.0.0.1", "--port", str(port)]
    folders = [f"--{name}={folder}" for name, folder in (("config", tmp_path / "none"), ("sources", tmp_path))]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [*command, *folders, f"--artifacts={cell.context.artifacts}", f"--termination-log={tmp_path / 'ended'}"],
        env={**os.environ, "PYTHONPATH": path, "FINETUNE_SERVED": told},
    )
    url = f"http://127.0.0.1:{port}"

    def status(path: str) -> int:
        try:
            return httpx.get(url + path, timeout=BOUND).status_code
        except httpx.TransportError:
            return 0

    try:
        wait_for(lambda: status("/readyz") == 200, process)
        answer = httpx.post(url + ROUTE, json={"model": "travel", "input": "my invoice is late"}, timeout=BOUND)
        assert answer.json()["data"][0]["label"] in SUBJECTS
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND) == 0
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
