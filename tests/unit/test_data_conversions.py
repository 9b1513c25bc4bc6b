"""ShareGPT and Alpaca become what the task takes; what they hold beyond that is a fault with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data_rows import read_for

from finetune_api.tasks import Task


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def turn(who: Any, said: Any, **more: Any) -> dict[str, Any]:
    return {"from": who, "value": said, **more}


def shared(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": list(turns), **more}


HUMAN, GPT, SYSTEM = turn("human", "Hi"), turn("gpt", "Hello"), turn("system", "Be kind.")
ALPACA = {"instruction": "Translate.", "input": "sea", "output": "mer"}
TOOL = {"type": "function", "function": {"name": "f"}}


def read(path: Path, task: Task, *rows: dict[str, Any], **columns: str) -> Any:
    return read_for(task, path / "data", "\n".join(map(json.dumps, rows)).encode(), **columns)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (shared(HUMAN, GPT), [user("Hi"), assistant("Hello")]),
        (shared(SYSTEM, HUMAN, GPT, HUMAN, GPT, id="x1"), [system("Be kind."), *[user("Hi"), assistant("Hello")] * 2]),
        (shared(HUMAN, GPT, system="Be kind."), [system("Be kind."), user("Hi"), assistant("Hello")]),
        (shared(SYSTEM, HUMAN, GPT, system="Other."), [system("Be kind."), user("Hi"), assistant("Hello")]),
        (shared(turn("user", "Hi"), turn("assistant", "Hello")), [user("Hi"), assistant("Hello")]),
        (shared(user("Hi"), assistant("Hello")), [user("Hi"), assistant("Hello")]),
        (shared(HUMAN, turn("gpt", "Hello", weight=0)), [user("Hi"), {**assistant("Hello"), "weight": 0}]),
        ({"instruction": "Say hi.", "output": "Hi."}, [user("Say hi."), assistant("Hi.")]),
        ({**ALPACA, "text": None} | {"input": ""}, None),
        (ALPACA, [user("Translate.\n\nsea"), assistant("mer")]),
        ({**ALPACA, "input": ""}, [user("Translate."), assistant("mer")]),
        ({**ALPACA, "input": None}, [user("Translate."), assistant("mer")]),
        ({**ALPACA, "input": "", "system": "Be kind."}, [system("Be kind."), user("Translate."), assistant("mer")]),
        ({**ALPACA, "history": [["a", "b"]]}, [user("a"), assistant("b"), user("Translate.\n\nsea"), assistant("mer")]),
    ],
)
def test_conversations_become_messages(
    tmp_path: Path, row: dict[str, Any], messages: list[dict[str, Any]] | None
) -> None:
    found = read(tmp_path, Task.CHAT, row)
    assert found.values == ([{"messages": messages}] if messages else [row])


def test_tools_beside_a_conversation_stay(tmp_path: Path) -> None:
    assert read(tmp_path, Task.CHAT, shared(HUMAN, GPT, tools=[TOOL])).values[0]["tools"] == [TOOL]


def test_conversion_is_reported_once_a_file_with_its_count(tmp_path: Path) -> None:
    rows = [shared(HUMAN, GPT), {"messages": [user("Hi"), assistant("Hello")]}, ALPACA, ALPACA]
    found = read(tmp_path, Task.CHAT, *rows)
    assert len(found.rows) == 4
    assert {(check, tuple(at)) for check, at, _ in found.faults} == {
        ("converted_sharegpt", (0,)),
        ("converted_alpaca", (0,)),
    }
    assert found.texts["converted_alpaca"] == "2 example(s) in Alpaca form are read as `messages`"


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        (shared(HUMAN, GPT), "Hi\n\n", "Hello"),
        (shared(SYSTEM, HUMAN, GPT), "Be kind.\n\nHi\n\n", "Hello"),
        (ALPACA, "Translate.\n\nsea\n\n", "mer"),
    ],
)
def test_one_exchange_becomes_prompt_and_completion(
    tmp_path: Path, row: dict[str, Any], prompt: str, completion: str
) -> None:
    found = read(tmp_path, Task.COMPLETION, row)
    assert found.values == [{"prompt": prompt, "completion": completion}]


@pytest.mark.parametrize(
    ("row", "check", "where", "text"),
    [
        (shared(HUMAN, turn("gpt4", "x")), "from", "conversations[1].from", "not 'gpt4'"),
        (shared(HUMAN, turn("observation", "x")), "from", "conversations[1].from", "OpenAI's form"),
        (shared(HUMAN, turn(None, "x")), "from", "conversations[1].from", "not null"),
        (shared(HUMAN, turn(["gpt"], "x")), "from", "conversations[1].from", "not a list"),
        (shared(HUMAN, {"value": "x"}), "from", "conversations[1].from", "is missing"),
        (shared(HUMAN, turn("my private words", "x")), "from", "conversations[1].from", "not another text"),
        (shared(HUMAN, turn("gpt", 7)), "content", "conversations[1].value", "not a number"),
        (shared(HUMAN, {"from": "gpt"}), "content", "conversations[1].value", "not null"),
        (shared(HUMAN, "Hello"), "message_type", "conversations[1]", "not a text"),
        (shared(), "missing_messages", "conversations", "is empty"),
        ({**ALPACA, "output": ""}, "empty_output", "", "nothing to learn"),
        ({**ALPACA, "instruction": " "}, "empty_instruction", "", "nothing is asked"),
        ({**ALPACA, "output": None}, "output_type", "output", "not null"),
        ({**ALPACA, "input": ["sea"]}, "input_type", "input", "not a list"),
        ({**ALPACA, "history": [["a"]]}, "history_type", "history", "pairs"),
    ],
)
@pytest.mark.parametrize("task", [Task.CHAT, Task.COMPLETION])
def test_what_cannot_be_converted_is_a_fault(
    tmp_path: Path, task: Task, row: dict[str, Any], check: str, where: str, text: str
) -> None:
    found = read(tmp_path, task, row)
    assert found.rows == []
    assert found.faults == [(check, [1], where)]
    assert text in found.texts[check]


def test_conversation_of_several_turns_is_no_completion(tmp_path: Path) -> None:
    found = read(tmp_path, Task.COMPLETION, shared(HUMAN, GPT, HUMAN, GPT))
    assert found.rows == []
    assert "set spec.task to Chat" in found.texts["wrong_task"]


def test_mapped_conversation_is_converted(tmp_path: Path) -> None:
    found = read(tmp_path, Task.CHAT, {"dialog": [HUMAN, GPT], "id": 1}, messages="dialog")
    assert found.values == [{"messages": [user("Hi"), assistant("Hello")]}]


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.SEQ2SEQ, Task.PREFERENCE, Task.QUESTION_ANSWERING])
def test_other_tasks_see_the_row_as_it_is(tmp_path: Path, task: Task) -> None:
    for row in (shared(HUMAN, GPT), ALPACA):
        assert read(tmp_path, task, row).values == [row]


@pytest.mark.parametrize(
    "row", [{"messages": [user("Hi")], "conversations": []}, {"prompt": "a", "completion": "b", **ALPACA}]
)
def test_our_own_form_comes_first(tmp_path: Path, row: dict[str, Any]) -> None:
    found = read(tmp_path, Task.CHAT, row)
    assert (found.values, found.faults) == ([row], [])
