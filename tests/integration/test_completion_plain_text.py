"""Plain text through the real stages: all of it is learned, whether or not the model has a start token."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cells import run_cell
from tests.tiny_models import make_tiny_chat_model, make_tiny_tokenizer
from tests.trained_runs import one_thread
from tokenizers import processors

from finetune_api.spec import MethodType, Task
from finetune_trainer.training.inputs import load_prepared, load_tokenizer

VERSES = [{"text": f"The harbour is quiet in the morning, {n} boats leave before the sun is up."} for n in range(40)]


def base_with(path: Path, *, start: bool) -> Path:
    """A folder with the base `tiny`, whose tokenizer may put a start token before a text."""
    tokenizer = make_tiny_tokenizer()
    if start:
        tokenizer.add_special_tokens({"bos_token": "<|start|>"})
        number = tokenizer.convert_tokens_to_ids("<|start|>")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", number)]
        )
    return make_tiny_chat_model(path / "tiny", tokenizer=tokenizer).parent


@pytest.mark.parametrize("start", [False, True])
def test_plain_text_is_learned_and_measured(tmp_path: Path, start: bool) -> None:
    with one_thread():
        models = base_with(tmp_path / "models", start=start)
        cell = run_cell(tmp_path, models, Task.COMPLETION, MethodType.LORA, VERSES[:32], VERSES[32:], epochs=6)
    tokenizer = load_tokenizer(cell.context.artifacts / str(cell.prepared.base_path))
    for row in load_prepared(cell.context).rows("train"):
        first = row["input_ids"][0]
        assert (first == tokenizer.bos_token_id) is start
        assert row["labels"] == ([-100, *row["input_ids"][1:]] if start else row["input_ids"])
        assert row["labels"][-1] == tokenizer.eos_token_id
    assert cell.value("tuned", "loss") < cell.value("base", "loss") - 0.5
    assert bool(cell.report.samples) is start  # nothing can be asked with no token at all
