"""Every wrong request is refused by name, in OpenAI's form; what has no effect is accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_trainer.messages import TemplateAbilities
from finetune_trainer.serving.errors import InvalidRequest
from finetune_trainer.serving.protocol import ChatRequest, CompletionRequest, parse

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
STRICT = {"type": "function", "function": {"name": "f", "strict": True}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWERED = {"role": "tool", "tool_call_id": "c", "content": "x"}


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "greater"),
        ({"n": 0}, "n", "greater"),
        ({"n": 17}, "n", "less than or equal to 16"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [""]}, "stop", "empty"),
        ({"stop": 3}, "stop", "valid"),
        ({"frequency_penalty": 2.1}, "frequency_penalty", "2"),
        ({"presence_penalty": -3}, "presence_penalty", "-2"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"logit_bias": {"3": 1}}, "logit_bias", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "a tool must be"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "same name"),
        ({"tools": [STRICT]}, "tools[0].function.strict", "check the arguments"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "'auto' or 'none'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice", "'auto' or 'none'"),
        ({"functions": [{"name": "f"}]}, "functions", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"tempreature": 1}, "tempreature", "Unrecognized"),
        ({"model": None}, "model", "Missing"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", "valid array"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "'system'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "Missing"),
        ({"messages": [ANSWERED]}, "messages[0].tool_call_id", "no earlier call"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls", "'user'"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages[0].tool_call_id", "'user'"),
        ({"messages": [CALLING, {"role": "user", "content": "x"}]}, "messages[0].tool_calls", "no result"),
        (
            {"messages": [{**CALLING, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "x"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "JSON object",
        ),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", "Missing"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "Missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "'text'"),
    ],
)
def test_wrong_chats(change: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(ChatRequest, json.dumps({**CHAT, **change}).encode())
    error = caught.value.body()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert said in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "m", "temperature": NaN}',
    ],
)
def test_bodies_that_are_no_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(ChatRequest, body)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "change",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False},
        {"logprobs": False, "tools": None, "response_format": {"type": "text"}, "logit_bias": {}},
        {"temperature": 1, "top_p": None, "stop": None, "seed": None},
        {"messages": [{"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "audio": None}]},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": False},
        {"messages": [CALLING, ANSWERED], "tools": [TOOL], "tool_choice": "auto"},
    ],
)
def test_what_asks_for_nothing_is_accepted(change: dict[str, Any]) -> None:
    assert parse(ChatRequest, json.dumps({**CHAT, **change}).encode()).model == "m"


def test_parts_and_roles_become_what_templates_know() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = parse(ChatRequest, json.dumps({**CHAT, "messages": [{"role": "developer", "content": parts}]}).encode())
    assert request.messages[0].to_template(TemplateAbilities()) == {"role": "system", "content": "ab"}


def test_the_newer_name_of_the_limit_wins() -> None:
    body = json.dumps({**CHAT, "max_tokens": 5, "max_completion_tokens": 7}).encode()
    assert parse(ChatRequest, body).answer_tokens == 7


@pytest.mark.parametrize(
    ("prompt", "prompts"), [("a", ["a"]), (["a", "b"], ["a", "b"]), ([], None), ([1, 2], None), (["a"] * 65, None)]
)
def test_prompts(prompt: Any, prompts: list[str] | None) -> None:
    body = json.dumps({"model": "m", "prompt": prompt}).encode()
    if prompts is None:
        with pytest.raises(InvalidRequest, match="prompt"):
            parse(CompletionRequest, body)
    else:
        assert parse(CompletionRequest, body).prompts == prompts


def test_choices_differ_by_seed_and_defaults_come_from_the_model() -> None:
    request = parse(ChatRequest, json.dumps({**CHAT, "n": 2, "seed": 5}).encode())
    first, second = (request.sampling({"temperature": 0.6, "top_k": 20}, choice) for choice in range(2))
    assert (first.seed, second.seed) == (5, 6)
    assert (first.temperature, first.top_p, first.top_k) == (0.6, 1.0, 20)
