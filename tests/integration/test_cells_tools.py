"""Function calling through the real stages: a tiny model learns to call, is measured, and calls over OpenAI's API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from starlette.testclient import TestClient
from tests.cells import Cell, run_cell
from tests.tiny_models import make_tiny_chat_model
from tests.tool_chats import TOOLS, easy_data, easy_tokenizer
from tests.trained_runs import one_thread
from transformers import AutoModelForCausalLM, GenerationConfig

from finetune_api.spec import MethodType, Task
from finetune_trainer.serving.app import create_app
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.stages import serve

BOUND = 60.0  # seconds after which a wait is a failure
TRAIN, HELD_OUT = easy_data()
CALLING = [row for row in HELD_OUT if row["messages"][-1].get("tool_calls")]
RATES = {MethodType.LORA: 1e-2, MethodType.FULL: 5e-3}
# The method that learns parallel calls soonest; what the server does with an answer depends on no method.
quick_learner = pytest.mark.parametrize("cell", [MethodType.FULL], indirect=True, ids=str)


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    tokenizer = easy_tokenizer()
    folder = make_tiny_chat_model(root / "tiny", tokenizer=tokenizer, hidden_size=64, intermediate_size=128)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)  # learns faster than the wide start of the other tests
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    return root


@pytest.fixture(scope="module", params=list(RATES), ids=str)
def cell(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Cell:
    root = tmp_path_factory.mktemp("run")
    return run_cell(root, models, Task.CHAT, request.param, TRAIN, HELD_OUT, epochs=40, rate=RATES[request.param])


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


@pytest.fixture(scope="module")
def client(cell: Cell) -> Iterator[openai.OpenAI]:
    with served(cell) as found:
        yield found


def ask(client: openai.OpenAI, row: dict[str, Any], **more: Any) -> Any:
    settings: dict[str, Any] = {"model": "travel", "tools": TOOLS, "max_tokens": 90, "temperature": 0, **more}
    return client.chat.completions.create(messages=row["messages"][:-1], **settings)


def called(calls: Any) -> list[tuple[str, Any]]:
    return sorted((call.function.name, json.loads(call.function.arguments)["city"]) for call in calls or [])


def expected(row: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = row["messages"][-1]["tool_calls"]
    return sorted((call["function"]["name"], json.loads(call["function"]["arguments"])["city"]) for call in calls)


def test_the_tuned_model_calls_what_the_base_does_not(cell: Cell) -> None:
    for metric, least in (("toolName", 0.3), ("toolValid", 0.8), ("toolExact", 0.1)):
        assert cell.value("base", metric) < least < cell.value("tuned", metric)
    assert cell.value("tuned", "loss") < cell.value("base", "loss") / 2


def test_the_server_calls_as_the_evaluation_measured(cell: Cell, client: openai.OpenAI) -> None:
    right = {"toolName": 0, "toolExact": 0}
    for row in CALLING:
        choice = ask(client, row).choices[0]
        found = called(choice.message.tool_calls)
        right["toolName"] += [name for name, _ in found] == [name for name, _ in expected(row)]
        right["toolExact"] += found == expected(row)
        assert bool(found) == (choice.finish_reason == "tool_calls")
    for metric, count in right.items():
        assert count == round(len(CALLING) * cell.value("tuned", metric)), metric


def whole_call(client: openai.OpenAI, least: int) -> tuple[dict[str, Any], Any]:
    """A question that the model answers with so many calls, and the answer. It knows those of the training best."""
    for row in TRAIN:
        if len(row["messages"][-1].get("tool_calls") or []) < least:
            continue
        answer = ask(client, row)
        if len(answer.choices[0].message.tool_calls or []) >= least:
            return row, answer
    raise AssertionError("no answer has so many calls")


@quick_learner
def test_a_stream_brings_the_same_calls(client: openai.OpenAI) -> None:
    row, whole = whole_call(client, 2)
    message = whole.choices[0].message
    assert message.content is None
    assert len({call.id for call in message.tool_calls}) == 2
    *chunks, last = list(ask(client, row, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    assert [part.index for part in parts] == [0, 1]
    assert [(part.type, part.function) for part in parts] == [
        (call.type, part.function.model_copy(update=call.function.model_dump()))
        for call, part in zip(message.tool_calls, parts, strict=True)
    ]
    assert not any(delta.content for delta in deltas)
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "tool_calls"]
    assert last.usage == whole.usage


@quick_learner
def test_one_call_at_a_time_when_asked(client: openai.OpenAI) -> None:
    row, whole = whole_call(client, 2)
    single = ask(client, row, parallel_tool_calls=False).choices[0].message.tool_calls
    assert called(single) == called(whole.choices[0].message.tool_calls[:1])


@quick_learner
def test_results_go_back_and_text_streams_at_once(client: openai.OpenAI) -> None:
    row, whole = whole_call(client, 1)
    call = whole.choices[0].message.tool_calls[0]
    messages = [
        *row["messages"][:-1],
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "sun"},
    ]
    told = {"messages": [*messages, None]}
    answer = ask(client, told).choices[0]
    assert answer.message.tool_calls is None
    assert answer.message.content
    chunks = list(ask(client, told, stream=True))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(texts) == answer.message.content
    assert len(texts) > 1


@quick_learner
def test_none_calls_nothing(client: openai.OpenAI) -> None:
    answer = ask(client, CALLING[0], tool_choice="none").choices[0]
    assert answer.message.tool_calls is None
    assert answer.finish_reason in ("stop", "length")


@quick_learner
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools[0].function.strict"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
    ],
)
def test_what_cannot_be_promised_is_refused(client: openai.OpenAI, change: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, CALLING[0], **change)
    assert caught.value.param == param


@quick_learner
def test_a_call_that_was_cut_off_is_text(client: openai.OpenAI) -> None:
    row, _ = whole_call(client, 1)
    choice = ask(client, row, max_tokens=8).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert "<tool_call>" in str(choice.message.content)
