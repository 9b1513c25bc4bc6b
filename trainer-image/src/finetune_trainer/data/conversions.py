"""Other projects' forms of conversations, ShareGPT and Alpaca, as the task at hand takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from finetune_api.tasks import Task
from finetune_trainer.data.problems import Fault, FileName, Findings, json_type, plain_word

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
INTO = {
    Task.CHAT: "`messages`",
    Task.COMPLETION: "`prompt` (what comes before the answer, parts with an empty line between) and `completion`",
}
OURS = ("messages", "prompt", "completion", "text")


class Conversions:
    """Converts the rows of one file, and says at the end how many."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._counts: Counter[str] = Counter()

    def convert(self, row: dict[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
        """The row as the task takes it: itself when it is in no other form, or the task is for other data."""
        if self._task not in INTO:
            return row, []
        form, turns = _form_of(row)
        if turns is None:
            return row, []
        messages, faults = turns(row)
        if faults:
            return row, faults
        converted = self._as_task(row, messages)
        if converted is None:
            text = f"the line is a conversation of several turns in {form} form; set spec.task to Chat"
            return row, [Fault("wrong_task", text)]
        self._counts[form] += 1
        return converted, []

    def report(self, file: FileName, findings: Findings) -> None:
        """Say what was converted, once a file."""
        for form, count in self._counts.items():
            text = f"{count} example(s) in {form} form are read as {INTO[self._task]}"
            fault = Fault(f"converted_{form.lower()}", text, severity="warning")
            findings.add(file, 0, [fault])

    def _as_task(self, row: Mapping[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any] | None:
        if self._task is Task.CHAT:
            tools = {"tools": row["tools"]} if row.get("tools") else {}
            return {"messages": messages, **tools}
        roles = [message["role"] for message in messages]
        if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
            return None
        before = [message["content"] for message in messages[:-1] if message["content"]]
        return {"prompt": "\n\n".join(before) + "\n\n", "completion": messages[-1]["content"]}


Turns = Callable[[Mapping[str, Any]], tuple[list[dict[str, Any]], list[Fault]]]


def _form_of(row: Mapping[str, Any]) -> tuple[str, Turns | None]:
    if isinstance(row.get("conversations"), list) and not any(key in row for key in OURS):
        return "ShareGPT", lambda row: _share_gpt(row, "conversations")
    messages = row.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(m, dict) and "from" in m for m in messages):
        return "ShareGPT", lambda row: _share_gpt(row, "messages")  # mapped by dataset.columns
    if "instruction" in row and "output" in row and not any(key in row for key in OURS):
        return "Alpaca", _alpaca
    return "", None


def _share_gpt(row: Mapping[str, Any], key: str) -> tuple[list[dict[str, Any]], list[Fault]]:
    turns = row[key]
    if not turns:
        return [], [Fault("missing_messages", f"the list `{key}` is empty; remove the line", key)]
    faults = [fault for index, turn in enumerate(turns) for fault in _turn_faults(turn, f"{key}[{index}]")]
    if faults:
        return [], faults
    messages = [_message(turn) for turn in turns]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages, []


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    weight = {"weight": turn["weight"]} if turn.get("weight") is not None else {}
    return {"role": ROLES[_who(turn)], "content": turn["value"] if "value" in turn else turn["content"], **weight}


def _who(turn: Mapping[str, Any]) -> Any:
    return turn["from"] if "from" in turn else turn.get("role")


def _turn_faults(turn: Any, where: str) -> Iterator[Fault]:
    if not isinstance(turn, dict):
        yield Fault("message_type", f"a turn must be an object, not {json_type(turn)}", where)
        return
    who, said = _who(turn), turn.get("value", turn.get("content"))
    if not isinstance(who, str) or who not in ROLES:
        missing = "from" not in turn and "role" not in turn
        given = "and is missing" if missing else f"not {plain_word(who)}"
        hint = "; write calls of functions in OpenAI's form, `tool_calls`" if who in CALLS else ""
        yield Fault("from", f"`from` must be one of {', '.join(ROLES)}, {given}{hint}", f"{where}.from")
    if not isinstance(said, str):
        yield Fault("content", f"`value` must be a text, not {json_type(said)}", f"{where}.value")


CALLS = ("function_call", "function-call", "observation", "tool", "function")


def _alpaca(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Fault]]:
    faults = []
    for key in ("instruction", "input", "output", "system"):
        value = row.get(key)
        if not isinstance(value, str) and not (value is None and key in ("input", "system")):
            faults.append(Fault(f"{key}_type", f"`{key}` must be a text, not {json_type(value)}", key))
    if not faults and not row["instruction"].strip():
        faults.append(Fault("empty_instruction", "`instruction` is empty: nothing is asked; remove the line"))
    if not faults and not row["output"].strip():
        faults.append(Fault("empty_output", "`output` is empty, so there is nothing to learn; remove the line"))
    history = row.get("history") or []
    if not isinstance(history, list) or not all(_is_pair(pair) for pair in history):
        faults.append(Fault("history_type", "`history` must be a list of pairs [question, answer]", "history"))
    if faults:
        return [], faults
    system = [{"role": "system", "content": row["system"]}] if (row.get("system") or "").strip() else []
    asked = "\n\n".join(part for part in (row["instruction"], row.get("input") or "") if part.strip())
    earlier = [turn for question, answer in history for turn in _exchange(question, answer)]
    return [*system, *earlier, *_exchange(asked, row["output"])], []


def _exchange(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
