"""Training examples before a held-out one: the answer that is measured stays the same."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny_models import make_tiny_tokenizer

from finetune_trainer.evaluation.few_shot import few_shot_row
from finetune_trainer.masking import ChatMasker, mask_completion

TOKENIZER = make_tiny_tokenizer()
STOPS = frozenset({TOKENIZER.eos_token_id})


def chat(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    instructions = [{"role": "system", "content": system}] if system else []
    return {
        "messages": [*instructions, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    }


SHOTS = [chat("Sun?", "Yes.", "Be brief."), chat("Boats?", "Many boats."), chat("Rain?", "No.")]


def row_of(example: dict[str, Any]) -> dict[str, list[int]]:
    masked = ChatMasker(TOKENIZER, STOPS).mask(example)
    return {"input_ids": masked.input_ids, "labels": masked.labels}


def trained(row: Any) -> list[int]:
    return [label for label in row["labels"] if label != -100]


def test_shots_are_prior_turns_and_not_measured() -> None:
    example = chat("When?", "In the morning.", "Speak as a pilot.")
    row = few_shot_row(SHOTS, example, row_of(example), TOKENIZER, STOPS, 200)
    text = TOKENIZER.decode(row["input_ids"])
    assert text == (
        "<|system|>Speak as a pilot.<|end|>"
        "<|user|>Sun?<|end|><|assistant|>Yes.<|end|><|user|>Boats?<|end|><|assistant|>Many boats.<|end|>"
        "<|user|>Rain?<|end|><|assistant|>No.<|end|>"
        "<|user|>When?<|end|><|assistant|>In the morning.<|end|>"
    )
    assert TOKENIZER.decode(trained(row)) == "In the morning.<|end|>"


@pytest.mark.parametrize(("spare", "shots"), [(0, 3), (-1, 2), (-1000, 0)])
def test_as_many_as_fit(spare: int, shots: int) -> None:
    example = chat("When?", "Now.")
    whole = few_shot_row(SHOTS, example, row_of(example), TOKENIZER, STOPS, 1000)
    limit = len(whole["input_ids"]) + spare
    row = few_shot_row(SHOTS, example, row_of(example), TOKENIZER, STOPS, limit)
    assert TOKENIZER.decode(row["input_ids"]).count("<|assistant|>") == shots + 1
    assert trained(row) == trained(row_of(example))


def test_weights_of_the_example_are_kept() -> None:
    example = chat("When?", "Now.")
    example["messages"][-1]["weight"] = 0
    example["messages"] += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    row = few_shot_row(SHOTS, example, row_of(example), TOKENIZER, STOPS, 500)
    assert TOKENIZER.decode(trained(row)) == "Yes.<|end|>"


def test_completions() -> None:
    example = {"prompt": "The boats", "completion": " leave."}
    masked = mask_completion(TOKENIZER, **example)
    shots = [{"prompt": "The sun", "completion": " is up."}]
    plain = {"input_ids": masked.input_ids, "labels": masked.labels}
    row = few_shot_row(shots, example, plain, TOKENIZER, STOPS, 200)
    assert TOKENIZER.decode(row["input_ids"]) == "The sun is up.\n\nThe boats leave.<|end|>"
    assert trained(row) == trained(plain)
