"""The route of taggers: what is served is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.tiny_encoders import make_tiny_encoder
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from finetune_api.tasks import TASKS, Task
from finetune_trainer.evaluation.entities import entities
from finetune_trainer.serving.errors import InvalidRequest
from finetune_trainer.serving.predict_tag import TagPredictor
from finetune_trainer.serving.predictor import PredictModel
from finetune_trainer.serving.protocol import parse
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.tasks.token_classification import tag_words
from finetune_trainer.tasks.token_classification_data import words_of_text, words_of_tokens

TEXT = "Anna left Bern for Lisbon."
TOKENS = ["Anna", "left", "Bern", "for", "New", "York"]


def predict_model(folder: Path, labels: tuple[str, ...], context: int = 128) -> PredictModel:
    torch.manual_seed(0)
    module = AutoModelForTokenClassification.from_pretrained(folder, num_labels=len(labels)).eval()
    # A fresh head's labels nearly tie, and rounding, which depends on how rows are batched, would decide between them.
    module.classifier.weight.data *= 50
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return PredictModel("tuned", module, tokenizer, Facts(labels, (1,) * len(labels)), context)


def ask(model: PredictModel, texts: Any) -> list[dict[str, Any]]:
    predictor = TagPredictor()
    wanted = parse(predictor.request, json.dumps({"model": "tuned", "input": texts}).encode())
    items = predictor.items(wanted, model)
    outputs = iter(predictor.predict(model, [row for item in items for row in item.rows]))
    return [predictor.render(wanted, model, item, [next(outputs) for _ in item.rows]) for item in items]


def test_the_server_says_what_the_evaluation_measured(tmp_path: Path) -> None:
    labels = ("O", "B-A", "I-A", "B-B", "I-B")
    model = predict_model(make_tiny_encoder(tmp_path / "base"), labels)
    long = "Anna left Bern. " * 60

    texts = [words_of_text(TEXT), words_of_text(long), words_of_tokens(TOKENS)]
    measured = [found.tags(labels) for found in tag_words(model.module, model.tokenizer, texts)]
    served = ask(model, [TEXT, long, TOKENS])

    assert [[word["tag"] for word in one["words"]] for one in served] == measured
    assert [one["text"] for one in served] == [TEXT, long, " ".join(TOKENS)]
    assert served[0] == ask(model, TEXT)[0]
    for one, tags in zip(served, measured, strict=True):
        assert [(found["label"], found["first_word"], found["last_word"]) for found in one["entities"]] == [
            (entity.label, entity.first, entity.last) for entity in entities(tags)
        ]
        for found in [*one["entities"], *one["words"]]:
            assert one["text"][found["start"] : found["end"]] == found["text"]
            assert 0 < found["score"] <= 1


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "empty list"),
        ("  ", "'input' is empty"),
        (["a", ""], r"input\[1\]"),
        ([[]], "is empty"),
        ([["a", " "]], r"a word of input\[0\]"),
        (5, "input"),
    ],
)
def test_a_request_for_nothing_is_refused(tmp_path: Path, texts: Any, said: str) -> None:
    model = PredictModel("tuned", cast(Any, None), cast(Any, None), Facts(("O",), (1,)), 128)
    if texts == ["a", ""]:
        model = predict_model(make_tiny_encoder(tmp_path / "base"), ("O", "B-A", "I-A"))

    with pytest.raises(InvalidRequest, match=said):
        ask(model, texts)


def test_the_route_is_the_one_that_is_documented() -> None:
    assert TagPredictor.route == TASKS[Task.TOKEN_CLASSIFICATION].route
