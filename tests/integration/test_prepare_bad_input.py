"""Bad data and bad models, by example: each ends in Prepare with its line and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.prepared_runs import CHATS, Laptop, chat, lines, rows
from tests.tiny_encoders import make_tiny_encoder
from tests.tiny_models import make_tiny_chat_model, make_tiny_tokenizer
from tests.tool_chats import HERMES, WEATHER
from transformers import AutoTokenizer

from finetune_api.conditions import FailureReason
from finetune_api.reports import Summary
from finetune_api.spec import Task

LABELLED = [{"text": f"a text {n}", "label": "ab"[n % 2]} for n in range(12)]
TAGGED = [{"tokens": ["Anna", "sings"], "tags": ["B-PER", "O"]} for _ in range(12)]
ASKED = [{"question": "Who?", "context": f"Anna sings {n} songs", "answers": ["Anna"]} for n in range(12)]
USER = {"role": "user", "content": "Hi"}


def calling(arguments: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }


def with_tools(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [USER, *messages], "tools": [WEATHER]}


ANSWER = {"role": "assistant", "content": "It is sunny."}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_encoder(folder / "encoder" / "tiny")
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = HERMES
    make_tiny_chat_model(folder / "chat" / "tiny", tokenizer=tokenizer)
    return folder


def prepare(root: Path, models: Path, task: Task, train: Sequence[Any], held: Sequence[Any] = ()) -> Summary:
    laptop = Laptop(root, models)
    validation = laptop.put("held.jsonl", lines(list(held))) if held else None
    context = laptop.context(laptop.put("train.jsonl", lines(list(train))), validation, task=task)
    return laptop.prepare(context)[1]


@pytest.mark.parametrize(
    ("task", "train", "held", "place", "says"),
    [
        pytest.param(
            Task.CLASSIFICATION, LABELLED, [LABELLED[0], {"text": "x", "label": "c"}], "validation data, line 2",
            "'c' does not occur in the training data", id="a label that only the held-out data has",
        ),
        pytest.param(
            Task.TOKEN_CLASSIFICATION, [*TAGGED, {"tokens": ["Anna", "sings"], "tags": ["B-PER"]}], [], "line 13",
            "give every token one tag", id="tags of another length",
        ),
        pytest.param(
            Task.QUESTION_ANSWERING, [*ASKED[:3], {**ASKED[3], "answers": ["Bob"]}, *ASKED[4:]], [], "line 4",
            "correct the answer, or use the task Seq2Seq", id="an answer not in its context",
        ),
        pytest.param(
            Task.CHAT, [*CHATS, with_tools(calling("{city: Rome}"))], [], "line 13", "a text that holds a JSON object",
            id="arguments that are no JSON",
        ),
        pytest.param(
            Task.CHAT, [*CHATS, with_tools(calling("{}"), USER, ANSWER)], [], "line 13",
            "put a message of role `tool`", id="a call without a result",
        ),
        pytest.param(
            Task.CHAT, [*CHATS, with_tools({**ANSWER, "weight": 0})], [], "line 13", "there is nothing to learn",
            id="nothing to learn",
        ),
        pytest.param(
            Task.CHAT, [*CHATS, {"messages": [USER]}], [], "line 13", "no message is the assistant's",
            id="nobody answers",
        ),
        pytest.param(
            Task.CHAT, [*CHATS, chat("Hi", " ")], [], "line 13", "write the answer, give the message weight 0",
            id="an empty turn of the assistant",
        ),
    ],
)  # fmt: skip
def test_bad_lines_are_refused(
    tmp_path: Path, models: Path, task: Task, train: Any, held: Any, place: str, says: str
) -> None:
    base = models / ("chat" if task is Task.CHAT else "encoder")
    summary = prepare(tmp_path, base, task, train, held)
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.DATASET_INVALID
    assert place in summary.failure.message
    assert says in summary.failure.message
    file = "held.jsonl" if held else "train.jsonl"
    assert f"correct these lines of {file}" in summary.failure.advice


def test_three_examples_are_refused(tmp_path: Path, models: Path) -> None:
    summary = prepare(tmp_path, models / "chat", Task.CHAT, CHATS[:3])
    assert not summary.ok
    assert summary.failure is not None
    assert "train data: 3 example(s), and at least 10 are needed" in summary.failure.message
    assert "add examples of the same kind" in summary.failure.advice


def altered(models: Path, root: Path, **config: Any) -> Path:
    """A copy of the chat model with other values in the tokenizer's configuration."""
    folder = root / "altered" / "tiny"
    folder.mkdir(parents=True)
    for path in (models / "chat" / "tiny").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_a_tokenizer_that_outgrew_its_model_is_refused(tmp_path: Path, models: Path) -> None:
    folder = altered(models, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = len(tokenizer)
    tokenizer.add_tokens(["<harbour>", "<pilot>"])
    tokenizer.save_pretrained(folder)
    summary = prepare(tmp_path, folder.parent, Task.CHAT, CHATS)
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.MODEL_INVALID
    assert f"counts tokens up to {known + 1}, and the model knows {known}" in summary.failure.message
    assert "resize_token_embeddings" in summary.failure.advice


def test_a_pad_token_that_is_the_end_of_text_does_not_hide_the_end(tmp_path: Path, models: Path) -> None:
    """Many models pad with their end token; the one that ends an answer is learned all the same."""
    folder = altered(models, tmp_path, pad_token="<|end|>")
    laptop = Laptop(tmp_path, folder.parent)
    context = laptop.context(laptop.put("train.jsonl", lines(CHATS)))
    code, _ = laptop.prepare(context)
    assert code == 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    for row in rows(context, "train"):
        learned = [label for label in row["labels"] if label != -100]
        assert learned.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("task", [Task.CHAT, Task.PREFERENCE])
def test_a_tokenizer_with_neither_padding_nor_end_is_refused(tmp_path: Path, models: Path, task: Task) -> None:
    """Its model ends answers by generation_config.json; a batch would have nothing to be filled up with."""
    folder = altered(models, tmp_path, pad_token=None, eos_token=None)
    summary = prepare(tmp_path, folder.parent, task, CHATS)
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.MODEL_INVALID
    assert "neither a pad_token nor an eos_token" in summary.failure.message
    assert "tokenizer_config.json" in summary.failure.advice


@pytest.mark.parametrize(
    ("kind", "task", "says", "remedy"),
    [
        ("encoder", Task.CHAT, "it is a Bert", "use a language model that generates text"),
        ("chat", Task.TOKEN_CLASSIFICATION, "it is a LlamaForCausalLM", "BERT"),
    ],
)
def test_a_base_of_the_wrong_kind_is_refused(
    tmp_path: Path, models: Path, kind: str, task: Task, says: str, remedy: str
) -> None:
    summary = prepare(tmp_path, models / kind, task, CHATS)
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.MODEL_INVALID
    assert says in summary.failure.message
    assert remedy in summary.failure.advice


def test_a_chat_model_without_a_template_is_refused(tmp_path: Path, models: Path) -> None:
    folder = altered(models, tmp_path)
    (folder / "chat_template.jinja").unlink()
    summary = prepare(tmp_path, folder.parent, Task.CHAT, CHATS)
    assert summary.failure is not None
    assert "has no chat template" in summary.failure.message
    assert "instruct variant" in summary.failure.advice


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, models: Path) -> None:
    laptop = Laptop(tmp_path, models / "chat")
    code, summary = laptop.prepare(laptop.context(laptop.put("train.csv", lines(CHATS))))
    assert code == 10
    assert summary.failure is not None
    assert "named .csv" in summary.failure.message
    assert "rename it to .jsonl" in summary.failure.advice
