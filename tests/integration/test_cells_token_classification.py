"""TokenClassification by every method: prepared, trained, evaluated and served by the real stages."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cells import Cell, asked, run_cell, served
from tests.prepared_runs import Laptop, lines
from tests.tiny_encoders import make_tiny_encoder
from tests.tiny_roberta import make_tiny_roberta
from tests.tiny_seq2seq import make_tiny_seq2seq
from tests.trained_runs import one_thread
from transformers import AutoModelForTokenClassification, AutoTokenizer

from finetune_api.conditions import FailureReason
from finetune_api.spec import MethodType, Task

PEOPLE = ("Anna", "Otto", "Mia", "Paul")
FAMILIES = ("Keller", "Braun", "Vogel")
PLACES = ("Bern", "Oslo", "Lima", "Cairo")
FILLERS = ("left", "saw", "the", "harbour", "and", "yesterday", "wrote", "to", "from", "near")
WORDS = [" ".join([*PEOPLE, *FAMILIES, *PLACES, *FILLERS])]
ROUTE = "/v1/tag"
TASK = Task.TOKEN_CLASSIFICATION


def tagged(count: int, seed: int, length: int = 8) -> list[dict[str, Any]]:
    """Words with tags: people of one or two words, and places."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens: list[str] = []
        tags: list[str] = []
        while len(tokens) < length:
            kind = chance.choice(["PER", "LOC", "", "", ""])
            if kind == "PER":
                family = chance.choice([[], [chance.choice(FAMILIES)]])
                tokens += [chance.choice(PEOPLE), *family]
                tags += ["B-PER", *("I-PER" for _ in family)]
            else:
                tokens.append(chance.choice(PLACES if kind else FILLERS))
                tags.append("B-LOC" if kind else "O")
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def marked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same as texts with spans."""
    texts = []
    for row in rows:
        spans: list[dict[str, Any]] = []
        place = 0
        for token, tag in zip(row["tokens"], row["tags"], strict=True):
            if tag.startswith("B-"):
                spans.append({"start": place, "end": place + len(token), "label": tag[2:]})
            elif tag.startswith("I-"):
                spans[-1]["end"] = place + len(token)
            place += len(token) + 1
        texts.append({"text": " ".join(row["tokens"]), "spans": spans})
    return texts


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base `tiny`."""
    return make_tiny_encoder(tmp_path_factory.mktemp("models") / "tiny", texts=WORDS).parent


def assert_better(cell: Cell) -> None:
    """Tuned beats base in all metrics, and is nearly always right."""
    for metric in ("tokenAccuracy", "entityF1"):
        assert cell.value("tuned", metric) > cell.value("base", metric)
        assert cell.value("tuned", metric) > 0.9
    assert cell.value("tuned", "loss") < cell.value("base", "loss")


@pytest.mark.parametrize("method", list(MethodType))
def test_every_method_learns_tags_and_serves_them(models: Path, tmp_path: Path, method: MethodType) -> None:
    train, held = tagged(150, seed=1), tagged(30, seed=2)
    cell = run_cell(tmp_path, models, TASK, method, train, held)
    assert_better(cell)
    with served(cell.context) as client:
        answers = asked(client, ROUTE, [row["tokens"] for row in held])
        text = asked(client, ROUTE, "Mia Vogel left Oslo")[0]
    words = [(word["tag"], tag) for one, row in zip(answers, held, strict=True)
             for word, tag in zip(one["words"], row["tags"], strict=True)]  # fmt: skip
    assert sum(found == tag for found, tag in words) / len(words) == pytest.approx(cell.value("tuned", "tokenAccuracy"))
    assert [(one["text"], one["label"], one["start"], one["end"]) for one in text["entities"]] == [
        ("Mia Vogel", "PER", 0, 9),
        ("Oslo", "LOC", 15, 19),
    ]
    sample = cell.report.samples[0]
    assert " = " in sample.expected
    assert sample.tuned == sample.expected


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_a_base_that_was_a_tagger_of_other_labels(models: Path, tmp_path: Path, method: MethodType) -> None:
    folder = tmp_path / "models" / "tiny"
    AutoModelForTokenClassification.from_pretrained(models / "tiny", num_labels=9).save_pretrained(folder)
    AutoTokenizer.from_pretrained(models / "tiny").save_pretrained(folder)
    cell = run_cell(tmp_path, folder.parent, TASK, method, tagged(150, seed=1), tagged(30, seed=2))
    assert_better(cell)
    with served(cell.context) as client:
        text = asked(client, ROUTE, "Mia Vogel left Oslo")[0]
    assert [(one["text"], one["label"]) for one in text["entities"]] == [("Mia Vogel", "PER"), ("Oslo", "LOC")]


def test_texts_with_spans_and_texts_longer_than_the_model_reads(models: Path, tmp_path: Path) -> None:
    """Training cuts at the model's 128 tokens and says so; the evaluation reads texts of 300 words to the end."""
    train, held = marked(tagged(60, seed=1, length=150)), marked(tagged(8, seed=2, length=300))
    cell = run_cell(tmp_path, models, TASK, MethodType.LORA, train, held, epochs=20, lost=100)
    assert cell.prepared.dataset is not None
    assert cell.prepared.dataset.truncated == 68
    assert_better(cell)
    with served(cell.context) as client:
        found = asked(client, ROUTE, held[0]["text"])[0]
    assert len(found["words"]) >= 300
    right = {(one["start"], one["end"], one["label"]) for one in found["entities"]}
    expected = {(span["start"], span["end"], span["label"]) for span in held[0]["spans"]}
    assert len(right & expected) > 0.8 * len(expected)
    assert max(place for _, place, _ in right) > 0.9 * len(held[0]["text"])


def test_a_model_whose_tokens_begin_with_the_space_before(tmp_path: Path) -> None:
    models = make_tiny_roberta(tmp_path / "models" / "tiny", WORDS * 2).parent
    train, held = marked(tagged(150, seed=1)), marked(tagged(12, seed=2, length=150))
    cell = run_cell(tmp_path, models, TASK, MethodType.LORA, train, held, epochs=12, lost=100)
    assert cell.value("tuned", "entityF1") > max(0.5, cell.value("base", "entityF1"))
    with served(cell.context) as client:
        found = asked(client, ROUTE, "Mia Vogel left Oslo")[0]
    assert [(one["text"], one["label"]) for one in found["entities"]] == [("Mia Vogel", "PER"), ("Oslo", "LOC")]


@pytest.mark.parametrize(
    ("train", "held", "says"),
    [
        (tagged(30, 1), [{"tokens": ["a"], "tags": ["B-ORG"]}], "validation data, line 1: a label is not in the"),
        ([*tagged(9, 1), {"tokens": ["a", "b"], "tags": ["O"]}], None, "line 10: there are 2 tokens and 1 tags"),
        ([*tagged(9, 1), {"tokens": ["a"], "tags": ["I-PER"]}], None, "line 10: I- goes on"),
        ([*tagged(9, 1), {"tokens": [], "tags": []}], None, "line 10: `tokens` is empty"),
        ([{"tokens": [f"a{n}"], "tags": ["O"]} for n in range(12)], None, "has a label other than O"),
        ([{"words": ["a"], "ner_tags": ["O"]}], None, "dataset.columns"),
    ],
)
def test_data_that_cannot_be_learned_is_refused_with_its_place(
    models: Path, tmp_path: Path, train: Any, held: Any, says: str
) -> None:
    laptop = Laptop(tmp_path, models)
    validation = laptop.put("validation.jsonl", lines(held)) if held else None
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", lines(train)), validation, task=TASK))
    assert code == 10
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.DATASET_INVALID
    assert says in summary.failure.message


def test_a_base_that_writes_texts_is_refused(tmp_path: Path) -> None:
    models = tmp_path / "models"
    make_tiny_seq2seq(models / "tiny")
    laptop = Laptop(tmp_path, models)
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", lines(tagged(30, 1))), task=TASK))
    assert code == 10
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.MODEL_INVALID
    assert "the task needs an encoder" in summary.failure.message
