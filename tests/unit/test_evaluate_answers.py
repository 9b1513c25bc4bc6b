"""Answers in the evaluation are the server's: nothing but the likeliest token, whatever a model's settings say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from tests.tiny_models import make_tiny_chat_model, make_tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from finetune_trainer.evaluation.answers import greedy

PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13]]
LENGTH = 24
SPECIAL = 5  # the first ids, padding and the end among them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends, with rows for 8 tokens that its tokenizer does not have."""
    rows = len(make_tiny_tokenizer()) + 8
    folder = make_tiny_chat_model(tmp_path_factory.mktemp("endless"), vocab_size=rows, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data[:SPECIAL] = 0
    model.save_pretrained(folder)
    return folder


def written(model: Any, folder: Path) -> list[list[int]]:
    found = greedy(model.eval(), AutoTokenizer.from_pretrained(folder), PROMPTS, LENGTH)
    assert not any(answer.ended for answer in found)
    return [answer.tokens for answer in found]


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapter"])
@pytest.mark.parametrize("settings", [{"no_repeat_ngram_size": 1}, {"num_beams": 4}, {"repetition_penalty": 9.0}])
def test_rules_of_the_model_do_not_count(folder: Path, settings: dict[str, Any], adapted: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    said = written(model, folder)
    assert any(len(set(answer)) < LENGTH for answer in said), "the test's model repeats nothing"
    own = GenerationConfig(**settings)
    model.generation_config = own
    changed = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")) if adapted else model
    assert written(changed, folder) == said
    assert model.generation_config is own


def test_ids_beyond_the_tokenizer_are_never_written(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    known = len(AutoTokenizer.from_pretrained(folder))
    model.lm_head.weight.data[known:] = 100 * model.lm_head.weight.data[SPECIAL : SPECIAL + 8]
    assert all(token < known for answer in written(model, folder) for token in answer)
