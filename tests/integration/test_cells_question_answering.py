"""QuestionAnswering by every method: prepared, trained, evaluated and served by the real stages."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from tests.cells import Cell, asked, run_cell, served
from tests.prepared_runs import Laptop, lines
from tests.tiny_encoders import make_tiny_encoder
from tests.tiny_models import make_tiny_chat_model
from tests.tiny_roberta import make_tiny_roberta
from tests.trained_runs import one_thread

from finetune_api.conditions import FailureReason
from finetune_api.spec import MethodType, Task

PEOPLE = ("Anna", "Otto", "Mia", "Paul")
FAMILIES = ("Keller", "Braun", "Vogel")
PLACES = ("Bern", "Oslo", "Lima", "Cairo")
FILLERS = ("left", "saw", "the", "harbour", "and", "yesterday", "wrote", "to", "from", "near")
WORDS = [" ".join([*PEOPLE, *FAMILIES, *PLACES, *FILLERS, "Who Where is it ?"])]
ROUTE = "/v1/answer"
TASK = Task.QUESTION_ANSWERING


def questions(count: int, seed: int, length: int = 8, without: float = 0.2) -> list[dict[str, Any]]:
    """Who (a person of two words) or where (a place)? A share of the contexts has neither."""
    chance = random.Random(seed)
    rows = []
    for index in range(count):
        who = index % 2 == 0
        answer = f"{chance.choice(PEOPLE)} {chance.choice(FAMILIES)}" if who else chance.choice(PLACES)
        words = [chance.choice(FILLERS) for _ in range(length)]
        answered = chance.random() >= without
        if answered:
            words.insert(chance.randrange(length + 1), answer)
        context = " ".join(words)
        answers = {"text": [answer], "answer_start": [context.index(answer)]} if answered else {"text": []}
        rows.append({"question": "Who is it?" if who else "Where is it?", "context": context, "answers": answers})
    return rows


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base `tiny`."""
    return make_tiny_encoder(tmp_path_factory.mktemp("models") / "tiny", texts=WORDS).parent


def assert_better(cell: Cell, least: float = 0.85) -> None:
    """Tuned beats base in all metrics, and is nearly always right."""
    for metric in ("exactMatch", "answerF1"):
        assert cell.value("tuned", metric) > cell.value("base", metric)
        assert cell.value("tuned", metric) > least
    assert cell.value("tuned", "loss") < cell.value("base", "loss")


def answers_to(cell: Cell, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the server answers."""
    with served(cell.context) as client:
        return asked(client, ROUTE, [{"question": row["question"], "context": row["context"]} for row in rows])


@pytest.mark.parametrize("method", list(MethodType))
def test_every_method_learns_answers_and_serves_them(models: Path, tmp_path: Path, method: MethodType) -> None:
    train, held = questions(150, seed=1), questions(30, seed=2)
    cell = run_cell(tmp_path, models, TASK, method, train, held, epochs=12)
    assert_better(cell)
    found = answers_to(cell, held)
    right = [one["answer"] == (row["answers"]["text"] or [None])[0] for one, row in zip(found, held, strict=True)]
    assert sum(right) / len(right) == pytest.approx(cell.value("tuned", "exactMatch"))
    assert any(one["answer"] is None for one in found)
    for one, row in zip(found, held, strict=True):
        assert one["answer"] is None or row["context"][one["start"] : one["end"]] == one["answer"]
    sample = cell.report.samples[0]
    assert sample.prompt.startswith(("Who is it?", "Where is it?"))
    assert sample.expected in sample.prompt or sample.expected == "(no answer)"


def test_contexts_longer_than_the_model_reads(models: Path, tmp_path: Path) -> None:
    """Training takes all windows, and loses no example; the evaluation reads 300 words to the end."""
    train, held = questions(60, seed=1, length=200, without=0), questions(12, seed=2, length=300, without=0)
    cell = run_cell(tmp_path, models, TASK, MethodType.FULL, train, held, epochs=8, lost=0)
    data = cell.prepared.dataset
    assert data is not None
    assert (data.train_examples, data.truncated, data.dropped) == (60, 0, 0)
    rows = load_from_disk(str(cell.context.dataset_dir / "train"))
    assert len(rows) > 60 + 30
    assert cell.trained.total_steps == 8 * math.ceil(len(rows) / 16)
    assert_better(cell)
    found = answers_to(cell, held)
    right = [one["start"] == row["answers"]["answer_start"][0] for one, row in zip(found, held, strict=True)]
    assert sum(right) / len(right) == pytest.approx(cell.value("tuned", "exactMatch"))


def test_a_model_without_segments_whose_tokens_begin_with_the_space_before(tmp_path: Path) -> None:
    models = make_tiny_roberta(tmp_path / "models" / "tiny", WORDS * 2).parent
    train, held = questions(240, seed=1), questions(30, seed=2)
    cell = run_cell(tmp_path, models, TASK, MethodType.LORA, train, held, epochs=12)
    assert_better(cell, least=0.75)
    found = answers_to(cell, held)
    right = [one["answer"] == (row["answers"]["text"] or [None])[0] for one, row in zip(found, held, strict=True)]
    assert sum(right) / len(right) == pytest.approx(cell.value("tuned", "exactMatch"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"answers": {"text": ["Bern"], "answer_start": [3]}}, "line 31: the answer does not stand at"),
        ({"answers": ["Berta"]}, "line 31: the answer is not in its context"),
        ({"answers": ["bern"]}, "line 31: the answer is in its context only with other capitals"),
        ({"answers": 5}, "line 31: `answers` must be"),
        ({"question": ""}, "line 31: `question` is empty"),
        ({"context": None}, "line 31: `context` must be a text, not null"),
    ],
)
def test_data_that_cannot_be_learned_is_refused_with_its_place(
    models: Path, tmp_path: Path, wrong: dict[str, Any], says: str
) -> None:
    row = {"question": "Where is it?", "context": "Anna left Bern.", "answers": ["Bern"], **wrong}
    laptop = Laptop(tmp_path, models)
    data = laptop.put("train.jsonl", lines([*questions(30, 1), row]))
    code, summary = laptop.prepare(laptop.context(data, task=TASK))
    assert code == 10
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.DATASET_INVALID
    assert says in summary.failure.message


def test_a_base_that_reads_only_forward_is_refused(tmp_path: Path) -> None:
    models = make_tiny_chat_model(tmp_path / "models" / "tiny").parent
    laptop = Laptop(tmp_path, models)
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", lines(questions(30, 1))), task=TASK))
    assert code == 10
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.MODEL_INVALID
    assert "the task needs an encoder" in summary.failure.message
