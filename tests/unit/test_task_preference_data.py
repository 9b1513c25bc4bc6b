"""Lines of preference data: every form says the same, and every fault names its place."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_trainer.data.problems import Fault
from finetune_trainer.messages import TemplateAbilities
from finetune_trainer.tasks.preference_data import check_preference, normalise_preference

ABILITIES = TemplateAbilities()
USER = {"role": "user", "content": "Is Oslo nice?"}
YES, NO = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No, it rains."}
OPENAI = {"input": {"messages": [USER]}, "preferred_output": [YES], "non_preferred_output": [NO]}
TEXTS = {"prompt": "Is Oslo nice?", "chosen": "Yes.", "rejected": "No, it rains."}
NORMAL = {"messages": [USER], "chosen": YES, "rejected": NO}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


@pytest.mark.parametrize(
    "line",
    [
        OPENAI,
        {**OPENAI, "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True}},
        TEXTS,
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": [USER], "chosen": YES, "rejected": NO},
        {"prompt": [{**USER, "weight": None, "name": None}], "chosen": [{**YES, "tool_calls": None}], "rejected": NO},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "Is Oslo nice?", "chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},
        {
            "prompt": [USER],
            "chosen": [{**YES, "content": [{"type": "text", "text": "Yes."}]}],
            "rejected": "No, it rains.",
        },
    ],
)
def test_every_form_says_the_same(line: dict[str, Any]) -> None:
    assert check_preference(line, ABILITIES) == []
    assert normalise_preference(line, ABILITIES) == NORMAL


def test_tools_and_calls() -> None:
    called = {"role": "assistant", "tool_calls": [CALL]}
    line = {**OPENAI, "input": {"messages": [USER], "tools": [TOOL]}, "preferred_output": [called]}
    assert check_preference(line, ABILITIES) == []
    normal = normalise_preference(line, ABILITIES)
    assert normal["tools"] == [TOOL]
    assert normal["chosen"]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    without = check_preference(line, TemplateAbilities(tools=False))
    assert [(fault.check, fault.where) for fault in without] == [("template_tools", "input.tools")]


def several(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return list(messages)


@pytest.mark.parametrize(
    ("line", "check", "words", "where"),
    [
        ({"messages": [USER, YES]}, "wrong_task", "set spec.task to Chat", ""),
        ({"prompt": "a", "completion": "b"}, "wrong_task", "set spec.task to Completion", ""),
        ({"text": "a"}, "missing_outputs", "no better and worse answer; write", ""),
        ({**TEXTS, "rejected": "Yes."}, "equal_outputs", "`chosen` and `rejected` are equal", "rejected"),
        ({**OPENAI, "non_preferred_output": [YES]}, "equal_outputs", "are equal", "non_preferred_output"),
        ({**TEXTS, "chosen": " \n"}, "empty_output", "`chosen` is empty", "chosen[0].content"),
        (
            {**OPENAI, "preferred_output": [{"role": "assistant", "content": None}]},
            "empty_output",
            "`preferred_output` is empty",
            "preferred_output[0].content",
        ),
        (
            {**OPENAI, "preferred_output": several(YES, NO)},
            "several_outputs",
            "has 2 messages and must be exactly one of the assistant; put what comes before",
            "preferred_output",
        ),
        ({**OPENAI, "preferred_output": []}, "several_outputs", "has 0 messages", "preferred_output"),
        ({**OPENAI, "preferred_output": 5}, "output_type", "not a number", "preferred_output"),
        ({**OPENAI, "preferred_output": [USER]}, "output_role", "not 'user'", "preferred_output[0].role"),
        ({"input": {"messages": [USER]}, "preferred_output": [YES]}, "missing_non_preferred_output", "write", ""),
        ({"preferred_output": [YES], "non_preferred_output": [NO]}, "input", "and is missing", "input"),
        ({**OPENAI, "input": [USER]}, "input", "and is a list", "input"),
        ({**OPENAI, "input": {}}, "prompt", "`input.messages` is missing", "input.messages"),
        ({**OPENAI, "input": {"messages": []}}, "prompt", "is empty", "input.messages"),
        ({"chosen": "a", "rejected": "b"}, "prompt", "`prompt` is missing", "prompt"),
        ({**TEXTS, "prompt": " "}, "prompt", "is empty", "prompt"),
        ({**TEXTS, "prompt": 3}, "prompt", "is a number", "prompt"),
        ({"prompt": "a", "chosen": "b"}, "missing_rejected", "the line has no `rejected`", ""),
        ({**OPENAI, "input": {"messages": [USER, YES]}}, "prompt_end", "not 'assistant'", "input.messages[1]"),
        (
            {**OPENAI, "input": {"messages": [{"role": "use", "content": "a"}]}},
            "role",
            "the role must be one of",
            "input.messages[0].role",
        ),
        (
            {**OPENAI, "preferred_output": [{**YES, "content": 5}]},
            "content",
            "must be a text",
            "preferred_output[0].content",
        ),
        (
            {"chosen": [USER, YES], "rejected": [{**USER, "content": "Other?"}, NO]},
            "different_prompts",
            "differ before their last message",
            "rejected",
        ),
        (
            {"prompt": "Other?", "chosen": [USER, YES], "rejected": [USER, NO]},
            "different_prompts",
            "is not what `chosen` and `rejected` begin with",
            "prompt",
        ),
        (
            {**OPENAI, "input": {"messages": [USER], "tools": [{}]}},
            "tools",
            "a tool must be",
            "input.tools[0]",
        ),
    ],
)
def test_faults_name_the_place_and_the_remedy(line: dict[str, Any], check: str, words: str, where: str) -> None:
    faults = [fault for fault in check_preference(line, ABILITIES) if fault.severity == "error"]
    assert [(fault.check, fault.where) for fault in faults] == [(check, where)]
    assert words in faults[0].message


@pytest.mark.parametrize(
    ("line", "check"),
    [
        ({**TEXTS, "score": 5}, "unknown_key"),
        ({**OPENAI, "input": {"messages": [USER], "seed": 5}}, "unknown_key"),
        ({**OPENAI, "preferred_output": [{**YES, "weight": 0}]}, "weight"),
    ],
)
def test_what_is_ignored_is_said(line: dict[str, Any], check: str) -> None:
    faults = check_preference(line, ABILITIES)
    assert [(fault.check, fault.severity) for fault in faults] == [(check, "warning")]
    assert "is ignored" in faults[0].message
    assert normalise_preference(line, ABILITIES) == NORMAL


@pytest.mark.parametrize("junk", [None, 3, "text", [], [3], {}, {"role": 3}, [{"role": "assistant"}], [[]]])
@pytest.mark.parametrize("key", ["input", "preferred_output", "non_preferred_output", "prompt", "chosen", "rejected"])
def test_junk_is_a_fault_and_never_a_crash(junk: Any, key: str) -> None:
    line = {**(OPENAI if key in OPENAI or key == "input" else TEXTS), key: junk}
    faults: list[Fault] = check_preference(line, ABILITIES)
    if not any(fault.severity == "error" for fault in faults):
        assert normalise_preference(line, ABILITIES)["messages"]
