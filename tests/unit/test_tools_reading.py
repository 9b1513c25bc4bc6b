"""Calls are read back from what each template writes, as a whole and piece by piece; what is no call stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.tool_chats import CLOCK, MARKS, TEMPLATES, UNKNOWN, WEATHER, tool_tokenizer

from finetune_trainer.messages import render
from finetune_trainer.tool_calls import CallReader, call_form, decode, hidden_tokens, read_calls
from finetune_trainer.tool_forms import Call

TOOLS = [WEATHER, CLOCK]
USER = {"role": "user", "content": "How is it?"}
CALLS = [
    Call("weather", {"city": 'São "Bento" </tool_call>', "days": 3}),
    Call("time", {"city": "Oslo {}"}),
]
PLAIN = Call("weather", {"city": "Oslo", "days": 3})


def written(tokenizer: Any, calls: list[Call], content: str = "") -> str:
    """What a model writes that does as the template: without the end of the turn."""
    listed = [
        {"id": "call00001", "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
        for one in calls
    ]
    answer = {"role": "assistant", "content": content, "tool_calls": listed}
    prompt = render(tokenizer, [USER], tools=TOOLS, prompt=True)
    whole = render(tokenizer, [USER, answer], tools=TOOLS, prompt=False)
    return whole.removeprefix(prompt).removesuffix(tokenizer.eos_token)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("template", TEMPLATES)
def test_calls_are_read_from_the_tokens_of_every_form(template: str, special: bool) -> None:
    tokenizer = tool_tokenizer(TEMPLATES[template], marks=tuple(MARKS.get(template, ())) if special else ())
    form = call_form(tokenizer)
    assert form is not None
    calls = [PLAIN, CALLS[1]] if template == "xml" else CALLS  # XML cannot hold its own closing tag
    ids = tokenizer(written(tokenizer, calls), add_special_tokens=False)["input_ids"]
    assert read_calls(form, decode(tokenizer, ids, hidden_tokens(tokenizer, form)), TOOLS) == calls


@pytest.mark.parametrize("template", TEMPLATES)
def test_text_before_a_call_is_shown_at_once_and_the_call_never(template: str) -> None:
    tokenizer = tool_tokenizer(TEMPLATES[template])
    form = call_form(tokenizer)
    assert form is not None
    before = "" if template == "llama" else "I look [it] up <now>."
    reader = CallReader(form, TOOLS)
    shown = [reader.push(letter) for letter in written(tokenizer, [PLAIN], before)]
    rest, calls = reader.finish(ended=True)
    assert "".join(shown) == before
    assert (rest, calls) == ("", [PLAIN])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("text", ["Hello.\n", " a < b [T] {1} <tool", '{"name": "nobody", "parameters": {}}', "{", ""])
def test_what_is_no_call_is_text(template: str, text: str) -> None:
    form = call_form(tool_tokenizer(TEMPLATES[template]))
    assert form is not None
    reader = CallReader(form, TOOLS)
    shown = "".join(reader.push(letter) for letter in text)
    rest, calls = reader.finish(ended=True)
    assert (shown + rest, calls) == (text, [])


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Os'),
        ("hermes", "<tool_call>weather</tool_call>"),
        ("hermes", '<tool_call>{"name": "weather", "arguments": "Oslo"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"days": NaN}}</tool_call>'),
        ("hermes", "<tool_call>" + "[" * 100_000),
        ("mistral", "[TOOL_CALLS] 7"),
        ("mistral", '[TOOL_CALLS] [{"arguments": {}}]'),
        ("llama", '{"name": "weather", "parameters": {"city": "Oslo"}} or so'),
        ("llama", '{"weather": "sunny"}'),
    ],
)
def test_a_broken_call_is_shown_as_the_model_wrote_it(template: str, text: str) -> None:
    form = call_form(tool_tokenizer(TEMPLATES[template]))
    assert form is not None
    reader = CallReader(form, TOOLS)
    assert reader.push(text) == ""
    assert reader.finish(ended=False) == (text, [])


def test_a_call_without_its_end_counts_only_when_the_model_stopped() -> None:
    form = call_form(tool_tokenizer(TEMPLATES["xml"]))
    assert form is not None
    text = "<tool_call>\n<function=time>\n<parameter=city>\nOslo\n</parameter>\n"
    for ended, expected in ((True, [Call("time", {"city": "Oslo"})]), (False, [])):
        reader = CallReader(form, TOOLS)
        reader.push(text)
        assert reader.finish(ended=ended)[1] == expected


def test_text_after_a_call_is_kept() -> None:
    form = call_form(tool_tokenizer())
    assert form is not None
    reader = CallReader(form, TOOLS)
    reader.push('Look: <tool_call>{"name": "time", "arguments": {}}</tool_call>\nOne moment.\n')
    assert reader.finish(ended=True) == ("\nOne moment.", [Call("time", {})])


def test_arguments_may_be_json_in_a_text() -> None:
    form = call_form(tool_tokenizer())
    assert form is not None
    text = "<tool_call>" + json.dumps({"name": "time", "arguments": '{"city": "Oslo"}'}) + "</tool_call>"
    assert read_calls(form, text, TOOLS) == [Call("time", {"city": "Oslo"})]


def test_a_tokenizer_may_describe_its_own_form() -> None:
    tokenizer = tool_tokenizer(UNKNOWN)
    assert call_form(tokenizer) is None
    described = tool_tokenizer(UNKNOWN)
    described.response_template = {
        "start_anchor": "<|assistant|>",
        "fields": {
            "tool_calls": {
                "open_pattern": r"@@(?P<name>\w+)\(",
                "close": ")@@",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {"content": "text"},
        },
    }
    form = call_form(described)
    assert form is not None
    assert read_calls(form, written(described, CALLS), TOOLS) == CALLS
    assert read_calls(form, "@@weather(no)@@", TOOLS) == []


def test_a_template_that_writes_no_calls_has_no_form() -> None:
    tokenizer = tool_tokenizer("{%- for message in messages -%}{{- message.content -}}{%- endfor -%}")
    assert call_form(tokenizer) is None
