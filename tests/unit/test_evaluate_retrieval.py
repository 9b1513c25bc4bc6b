"""The nearest training examples: by cosine, among what asks something, by a model's own hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_models import make_tiny_chat_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_trainer.evaluation.retrieval import embed, nearest, search


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = make_tiny_chat_model(tmp_path_factory.mktemp("retrieval") / "tiny")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def chat(asked: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "Yes."}]}


def test_the_search_is_that_of_a_whole_comparison() -> None:
    random = np.random.default_rng(1)
    stored, wanted = random.normal(size=(200, 8)).astype(np.float32), random.normal(size=(5, 8)).astype(np.float32)
    cosine = (wanted @ stored.T) / np.outer(np.linalg.norm(wanted, axis=1), np.linalg.norm(stored, axis=1))
    assert search(stored, wanted, 4) == np.argsort(-cosine, axis=1)[:, :4].tolist()


def test_the_same_question_is_the_nearest_and_the_padding_changes_nothing(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    train = [chat(f"Tell me about {place}") for place in ("Oslo in winter", "Rome", "boats and the sun in the morning")]
    held_out = [chat("Tell me about Rome"), chat("Tell me about Oslo in winter")]
    found = nearest(model, tokenizer, train, held_out, 2)
    assert [shots[0] for shots in found] == [train[1], train[0]]
    assert all(len(shots) == 2 for shots in found)
    together = embed(model, tokenizer, ["Rome", "boats and the sun in the morning"])
    alone = embed(model, tokenizer, ["Rome"])
    assert np.allclose(together[0], alone[0], atol=1e-4)


def test_where_nothing_is_asked_nothing_is_found(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    text = {"prompt": "", "completion": "Verse."}
    assert nearest(model, tokenizer, [text], [chat("Rome?")], 2) == [[]]
    assert nearest(model, tokenizer, [chat("Rome?")], [text, chat("Rome?")], 2) == [[], [chat("Rome?")]]
