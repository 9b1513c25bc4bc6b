"""Every way in which a line can be wrong: the check that finds it, its place, and what the user is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_trainer.data.chat import check_chat, normalise_chat
from finetune_trainer.data.completion import check_completion, normalise_completion
from finetune_trainer.data.problems import Fault, Findings, line_list
from finetune_trainer.messages import TemplateAbilities

U: dict[str, Any] = {"role": "user", "content": "Hi"}
A: dict[str, Any] = {"role": "assistant", "content": "Hello!"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def tool_of(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "parameters": parameters}}


CITY_TOOL = tool_of({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
ALL = TemplateAbilities(tools=True, tool_calls=True, developer=True)


def call(arguments: Any = '{"city": "Porto"}', *, name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


CALLS = {"role": "assistant", "content": None, "tool_calls": [call()]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}

# (example, check, where, part of the message)
BAD: list[tuple[dict[str, Any], str, str, str]] = [
    ({}, "missing_messages", "", "no list `messages`"),
    ({"messages": []}, "missing_messages", "", "at least one message"),
    ({"messages": "Hi"}, "missing_messages", "", "no list"),
    ({"prompt": "a", "completion": "b"}, "wrong_task", "", "spec.task to Completion"),
    ({"conversations": []}, "missing_messages", "", "ShareGPT"),
    (chat(U, A, functions=[]), "legacy_functions", "functions", "use `tools`"),
    (chat(U, A, function_call="auto"), "legacy_functions", "function_call", "tool_calls"),
    (chat(U, A, parallel_tool_calls="yes"), "parallel_tool_calls", "", "true or false"),
    (chat("Hi", A), "message_type", "messages[0]", "object, not a text"),
    (chat(U, None), "message_type", "messages[1]", "not null"),
    (chat({"content": "Hi"}, A), "role", "messages[0].role", "is missing"),
    (chat({"role": "human", "content": "Hi"}, A), "role", "messages[0].role", "not 'human'"),
    (chat({"role": "my secret text", "content": "Hi"}, A), "role", "messages[0].role", "not another text"),
    (chat({"role": 5, "content": "Hi"}, A), "role", "messages[0].role", "not a number"),
    (chat({"role": "function", "content": "x"}, A), "legacy_functions", "messages[0].role", "use `tool`"),
    (chat(U, {**A, "function_call": {"name": "f"}}), "legacy_functions", "messages[1].function_call", "tool_calls"),
    (chat(U, {**A, "wieght": 0}), "unknown_message_key", "messages[1]", "'wieght'"),
    (chat({"role": "user"}, A), "content", "messages[0].content", "missing or null"),
    (chat(U, {"role": "assistant", "content": None}), "content", "messages[1].content", "tool_calls"),
    (chat({"role": "user", "content": 7}, A), "content", "messages[0].content", "not a number"),
    (chat({"role": "user", "content": {"text": "Hi"}}, A), "content", "messages[0].content", "not an object"),
    (chat({"role": "user", "content": []}, A), "content_part", "messages[0].content", "is empty"),
    (chat({"role": "user", "content": ["Hi"]}, A), "content_part", "messages[0].content[0]", "not a text"),
    (
        chat({"role": "user", "content": [{"type": "text"}]}, A),
        "content_part",
        "messages[0].content[0]",
        "needs a `text`",
    ),
    (
        chat({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}, A),
        "content_part",
        "messages[0].content[1]",
        "not 'image_url'",
    ),
    (chat({**U, "weight": 1}, A), "weight", "messages[0].weight", "only an assistant"),
    (chat(U, {**A, "weight": 2}), "weight", "messages[1].weight", "must be 0"),
    (chat(U, {**A, "weight": 0.5}), "weight", "messages[1].weight", "must be 0"),
    (chat(U, {**A, "weight": True}), "weight", "messages[1].weight", "must be 0"),
    (chat(U, {**A, "weight": "1"}), "weight", "messages[1].weight", "must be 0"),
    (chat({**U, "name": 3}, A), "name", "messages[0].name", "must be a text"),
    (chat(U), "no_assistant", "", "nothing to learn"),
    (chat(U, {**A, "weight": 0}), "nothing_trainable", "", "weight 0"),
    (chat(U, A, tools={"name": "weather"}), "tools", "tools", "must be a list"),
    (chat(U, A, tools=[{"name": "weather"}]), "tools", "tools[0]", "a tool must be"),
    (chat(U, A, tools=[{"type": "function", "function": {"name": ""}}]), "tools", "tools[0]", "a tool must be"),
    (
        chat(U, A, tools=[{"type": "function", "function": {"name": "f", "parameters": "{}"}}]),
        "tools",
        "tools[0].function",
        "JSON schema",
    ),
    (chat({**U, "tool_calls": [call()]}, A), "tool_calls", "messages[0].tool_calls", "only an assistant"),
    (chat(U, {**A, "tool_calls": "weather"}, tools=[TOOL]), "tool_calls", "messages[1].tool_calls", "must be a list"),
    (
        chat(U, {**A, "tool_calls": [{}]}, tools=[TOOL]),
        "tool_calls",
        "messages[1].tool_calls[0]",
        "a tool call must be",
    ),
    (
        chat(U, {**A, "tool_calls": [call(id="")]}, tools=[TOOL]),
        "tool_calls",
        "messages[1].tool_calls[0].id",
        "needs an",
    ),
    (
        chat(U, {**A, "tool_calls": [call(), call()]}, tools=[TOOL]),
        "tool_calls",
        "messages[1].tool_calls[1].id",
        "used twice",
    ),
    (
        chat(U, {**A, "tool_calls": [call(name="rain")]}, tools=[TOOL]),
        "unknown_tool",
        "messages[1].tool_calls[0].function.name",
        "does not define",
    ),
    *(
        (
            chat(U, {**A, "tool_calls": [call(arguments)]}, tools=[TOOL]),
            "tool_arguments",
            "messages[1].tool_calls[0].function.arguments",
            "JSON object",
        )
        for arguments in ("{city: Porto}", "", '["Porto"]', None, 5)
    ),
    (
        chat(U, CALLS, {**RESULT, "tool_call_id": "c2"}, A, tools=[TOOL]),
        "tool_call_id",
        "messages[2].tool_call_id",
        "no earlier",
    ),
    (chat(U, RESULT, CALLS, A, tools=[TOOL]), "tool_call_id", "messages[1].tool_call_id", "no earlier"),
    (
        chat(U, CALLS, {"role": "tool", "content": "x"}, A, tools=[TOOL]),
        "tool_call_id",
        "messages[2].tool_call_id",
        "needs the `tool_call_id`",
    ),
    (chat({**U, "tool_call_id": "c1"}, A), "tool_call_id", "messages[0].tool_call_id", "only a tool message"),
    (chat(U, CALLS, A, tools=[TOOL]), "call_without_result", "messages[1].tool_calls", "right after it"),
    (
        chat(U, {**CALLS, "tool_calls": [call(), {**call(), "id": "c2"}]}, RESULT, A, tools=[TOOL]),
        "call_without_result",
        "messages[1].tool_calls",
        "has no result",
    ),
    (chat(U, CALLS, U, RESULT, A, tools=[TOOL]), "call_without_result", "messages[1].tool_calls", "has no result"),
    (chat(U, A, tools=[TOOL, TOOL]), "tools", "tools[1].function.name", "the same name"),
    *(
        (chat(U, {**A, "content": content}), "empty_answer", "messages[1].content", "give the message weight 0")
        for content in ("  ", [{"type": "text", "text": ""}, {"type": "text", "text": "\n"}])
    ),
]


@pytest.mark.parametrize(("example", "check", "where", "text"), BAD)
def test_bad_conversation_is_refused(example: dict[str, Any], check: str, where: str, text: str) -> None:
    faults = [fault for fault in check_chat(example, ALL) if fault.severity == "error"]
    assert [(fault.check, fault.where) for fault in faults] == [(check, where)]
    assert text in faults[0].message


WARNED: list[tuple[dict[str, Any], str]] = [
    (chat(U, A, id=7), "unknown_key"),
    (chat(U, A, U), "unanswered_end"),
    (chat(U, CALLS, RESULT, A), "tools_missing"),
    (chat(U, {**CALLS, "tool_calls": [call({"city": 7})]}, tools=[CITY_TOOL]), "arguments_schema"),
    (chat(U, {**CALLS, "tool_calls": [call("{}")]}, tools=[CITY_TOOL]), "arguments_schema"),
    (chat(U, A, tools=[tool_of({"type": "dictionary"})]), "tool_schema"),
    (chat(U, CALLS, tools=[tool_of({"type": 7})]), "tool_schema"),
    (chat(U, CALLS, tools=[tool_of({"properties": {"city": {"pattern": "("}}})]), "tool_schema"),
]


@pytest.mark.parametrize(("example", "check"), WARNED)
def test_odd_conversation_is_warned_about(example: dict[str, Any], check: str) -> None:
    assert [(fault.check, fault.severity) for fault in check_chat(example, ALL)] == [(check, "warning")]


GOOD: list[dict[str, Any]] = [
    chat(U, A),
    chat({"role": "system", "content": "Be kind."}, U, A, U, {**A, "weight": 0}, U, {**A, "weight": 1}),
    chat({"role": "developer", "content": "Be kind."}, U, A),
    chat(U, {**A, "content": "", "weight": 0}, U, A),
    chat({**U, "name": "ann"}, A),
    chat({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, A),
    chat(U, {**A, "refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}),
    chat(U, CALLS, RESULT, A, tools=[TOOL], parallel_tool_calls=False),
    chat(U, {**CALLS, "tool_calls": [call({"city": "Porto"})]}, RESULT, A, tools=[TOOL]),
    chat(U, CALLS, tools=[CITY_TOOL]),
    chat(
        U,
        {**CALLS, "tool_calls": [call(), {**call(), "id": "c2"}]},
        {**RESULT, "tool_call_id": "c2"},
        RESULT,
        A,
        tools=[TOOL],
    ),
    chat(U, CALLS, tools=[tool_of({"$ref": "https://example.invalid/schema.json"})]),
    chat(U, CALLS, tools=[tool_of({"$ref": "#"})]),
]


@pytest.mark.parametrize("example", GOOD)
def test_good_conversation_passes(example: dict[str, Any]) -> None:
    assert check_chat(example, ALL) == []


@pytest.mark.parametrize(
    ("example", "abilities"),
    [
        (chat(U, A, tools=[TOOL]), TemplateAbilities(tools=False, tool_calls=True)),
        (chat(U, CALLS, RESULT, A), TemplateAbilities(tools=True, tool_calls=False)),
    ],
)
def test_tools_need_a_template_that_renders_them(example: dict[str, Any], abilities: TemplateAbilities) -> None:
    faults = [fault for fault in check_chat(example, abilities) if fault.severity == "error"]
    assert [fault.check for fault in faults] == ["template_tools"]


def test_normal_form_is_what_templates_take() -> None:
    example = chat(
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        U,
        {**CALLS, "weight": 0},
        RESULT,
        {**A, "weight": 1, "refusal": None},
        tools=[TOOL],
        parallel_tool_calls=True,
    )
    assert normalise_chat(example, TemplateAbilities()) == {
        "messages": [
            {"role": "system", "content": "Be kind."},
            U,
            {"role": "assistant", "content": "", "tool_calls": [call({"city": "Porto"})], "weight": 0},
            {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
            A,
        ],
        "tools": [TOOL],
    }
    assert normalise_chat(example, ALL)["messages"][0]["role"] == "developer"


@pytest.mark.parametrize(
    ("example", "check"),
    [
        ({"completion": "b"}, "missing_prompt"),
        ({"prompt": "a"}, "missing_completion"),
        ({"prompt": None, "completion": "b"}, "prompt_type"),
        ({"prompt": "a", "completion": ["b"]}, "completion_type"),
        ({"prompt": "a", "completion": ""}, "empty_completion"),
        ({"messages": []}, "wrong_task"),
        ({"prompt": "a", "completion": "b", "id": 1}, "unknown_key"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "unknown_key"),
        ({"text": ["a"]}, "text_type"),
        ({"text": " \n"}, "empty_text"),
        ({"text": "a", "id": 1}, "unknown_key"),
    ],
)
def test_bad_completion_is_found(example: dict[str, Any], check: str) -> None:
    assert [fault.check for fault in check_completion(example)] == [check]


def test_completion_may_have_an_empty_prompt() -> None:
    assert check_completion({"prompt": "", "completion": "b"}) == []


def test_plain_text_is_a_completion_of_nothing() -> None:
    assert check_completion({"text": "Once upon a time"}) == []
    assert normalise_completion({"text": "Once upon a time"}) == {"prompt": "", "completion": "Once upon a time"}


def test_messages_never_carry_text_of_the_dataset() -> None:
    secret = "the patient's name is not to be seen"
    for example, *_ in BAD:
        marked = json.loads(
            json.dumps(example).replace("Hi", secret).replace("Hello!", secret).replace("sunny", secret)
        )
        assert all(secret not in fault.message + fault.where for fault in check_chat(marked, ALL))


def test_findings_are_sorted_worst_first_and_cut_for_the_status() -> None:
    findings = Findings()
    for line in range(1, 100):
        findings.add("train", line, [Fault("duplicate", "again", severity="warning")])
    findings.add("validation", 4, [Fault("role", "x" * 600, "messages[0].role"), Fault("role", "other")])
    for line in range(1, 31):
        findings.add("train", line, [Fault("content", "wrong", f"messages[{line}].content")])
    status = findings.for_status()
    assert [(problem.check, problem.count, problem.file) for problem in status] == [
        ("content", 30, "train"),
        ("role", 1, "validation"),
        ("duplicate", 99, "train"),
    ]
    assert status[0].lines == list(range(1, 21))
    assert status[0].message == "error: wrong (first: line 1, messages[1].content)"
    assert len(status[1].message) == 512
    assert [entry["line"] for entry in findings.for_report()[0]["lines"]] == list(range(1, 31))


@pytest.mark.parametrize(
    ("lines", "text"),
    [([], ""), ([0], ""), ([3], "line 3"), ([3, 7, 9], "lines 3, 7 and 9"), (range(1, 5), "lines 1, 2 and 2 more")],
)
def test_line_list_reads_well(lines: Any, text: str) -> None:
    assert line_list(lines, limit=3 if len(list(lines)) < 4 else 2) == text
