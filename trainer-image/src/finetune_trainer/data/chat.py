"""Checks of one conversation in OpenAI's fine-tuning format, and its form for chat templates.

The checks are those of OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning"), brought up
to date: tools, tool calls, the roles tool and developer, content as text parts, and weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune_trainer.data.problems import Fault, json_type, plain_word
from finetune_trainer.data.tools import check_calls, check_tools
from finetune_trainer.messages import TemplateAbilities, template_message, template_tools

CONVERSATION = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}'
ROLES = ("system", "developer", "user", "assistant", "tool")
EXAMPLE_KEYS = {"messages", "tools", "parallel_tool_calls"}
MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "weight"}
# Fields that exports of OpenAI responses carry; empty they say nothing, and are let pass.
EMPTY_KEYS = {"refusal", "audio", "function_call", "annotations", "tool_calls", "name", "weight"}


def check_chat(example: Mapping[str, Any], abilities: TemplateAbilities) -> list[Fault]:
    """Everything wrong with the example, in reading order. Empty: it can be normalised."""
    messages = example.get("messages")
    if not isinstance(messages, list) or not messages:
        return [_no_messages(example)]
    faults = [*_example_keys(example), *_tools(example, abilities)]
    for index, message in enumerate(messages):
        faults.extend(_message(message, f"messages[{index}]"))
    if not any(fault.severity == "error" for fault in faults):
        faults.extend(_conversation(messages))
        faults.extend(check_calls(messages, example.get("tools") or [], abilities))
    return faults


def normalise_chat(example: Mapping[str, Any], abilities: TemplateAbilities) -> dict[str, Any]:
    """The example as chat templates take it: content is a text, arguments are objects, tools only when given.

    A developer message becomes a system message where the template does not know the role. Weight 0 is kept.
    """
    messages = [_normalise_message(message, abilities) for message in example["messages"]]
    tools = template_tools(example.get("tools"))
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def _no_messages(example: Mapping[str, Any]) -> Fault:
    if "prompt" in example and "completion" in example:
        return Fault("wrong_task", "the line has prompt and completion; set spec.task to Completion")
    if "conversations" in example:
        return Fault("missing_messages", "the line is in ShareGPT form; write OpenAI's form: a list `messages`")
    return Fault(
        "missing_messages",
        "the line has no list `messages` with at least one message; every line must be a conversation, such as "
        f"{CONVERSATION}, and in CSV the column `messages` holds such a list",
    )


def _example_keys(example: Mapping[str, Any]) -> Iterator[Fault]:
    for key in example:
        if key in ("functions", "function_call"):
            yield Fault("legacy_functions", f"`{key}` is OpenAI's old form; use `tools` and `tool_calls`", key)
        elif key not in EXAMPLE_KEYS:
            text = f"the key {plain_word(key)} beside `messages` is not used; it is ignored"
            yield Fault("unknown_key", text, severity="warning")
    if not isinstance(example.get("parallel_tool_calls", True), bool | None):
        yield Fault("parallel_tool_calls", "`parallel_tool_calls` must be true or false")


def _message(message: Any, where: str) -> Iterator[Fault]:
    if not isinstance(message, dict):
        yield Fault("message_type", f"a message must be an object, not {json_type(message)}", where)
        return
    role = message.get("role")
    if role == "function":
        yield Fault("legacy_functions", "the role `function` is OpenAI's old form; use `tool`", f"{where}.role")
    elif role not in ROLES:
        given = f"not {plain_word(role)}" if "role" in message else "and is missing"
        yield Fault("role", f"the role must be one of {', '.join(ROLES)}, {given}", f"{where}.role")
    yield from _message_keys(message, where)
    yield from _content(message, where)
    yield from _weight(message, where)
    if not isinstance(message.get("name"), str | None):
        yield Fault("name", f"`name` must be a text, not {json_type(message['name'])}", f"{where}.name")


def _message_keys(message: Mapping[str, Any], where: str) -> Iterator[Fault]:
    for key, value in message.items():
        if key == "function_call" and value is not None:
            yield Fault("legacy_functions", "`function_call` is OpenAI's old form; use `tool_calls`", f"{where}.{key}")
        elif key not in MESSAGE_KEYS and not (key in EMPTY_KEYS and not value):
            text = (
                f"a message has the unknown key {plain_word(key)}; remove it (known: {', '.join(sorted(MESSAGE_KEYS))})"
            )
            yield Fault("unknown_message_key", text, where)
        elif key == "tool_calls" and value and message.get("role") != "assistant":
            yield Fault("tool_calls", "only an assistant message can have `tool_calls`", f"{where}.{key}")
        elif key == "tool_call_id" and value is not None and message.get("role") != "tool":
            yield Fault("tool_call_id", "only a tool message can have a `tool_call_id`", f"{where}.{key}")


def _content(message: Mapping[str, Any], where: str) -> Iterator[Fault]:
    content, place = message.get("content"), f"{where}.content"
    if _says_nothing(message):
        text = (
            "an assistant message is empty: it would teach the model to answer nothing; write the answer, give the "
            "message weight 0, remove the line, or set dataset.cleaning.missingValues to Drop"
        )
        yield Fault("empty_answer", text, place)
    elif content is None:
        if not (message.get("role") == "assistant" and message.get("tool_calls")):
            yield Fault(
                "content", "`content` is missing or null; only an assistant with `tool_calls` may omit it", place
            )
    elif isinstance(content, list):
        yield from _parts(content, place)
    elif not isinstance(content, str):
        yield Fault("content", f"`content` must be a text or a list of text parts, not {json_type(content)}", place)


def _says_nothing(message: Mapping[str, Any]) -> bool:
    """Whether an answer that is learned is an empty text, in one piece or in several."""
    if message.get("role") != "assistant" or message.get("weight") == 0 or message.get("tool_calls"):
        return False
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    return bool(texts) and all(isinstance(text, str) and not text.strip() for text in texts)


def _parts(parts: list[Any], where: str) -> Iterator[Fault]:
    for index, part in enumerate(parts):
        place = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            given = plain_word(kind) if isinstance(part, dict) else json_type(part)
            yield Fault("content_part", f"a content part must be of type 'text', not {given}", place)
        elif not isinstance(part.get("text"), str):
            yield Fault("content_part", "a content part of type 'text' needs a `text`", place)
    if not parts:
        yield Fault("content_part", "the list of content parts is empty", where)


def _weight(message: Mapping[str, Any], where: str) -> Iterator[Fault]:
    weight = message.get("weight")
    if weight is None:
        return
    if message.get("role") != "assistant":
        yield Fault("weight", "only an assistant message can have a `weight`; remove it", f"{where}.weight")
    elif isinstance(weight, bool) or not isinstance(weight, int) or weight not in (0, 1):
        yield Fault("weight", "`weight` must be 0 (not trained on) or 1", f"{where}.weight")


def _conversation(messages: list[dict[str, Any]]) -> Iterator[Fault]:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        yield Fault("no_assistant", "no message is the assistant's, so there is nothing to learn")
    elif all(message.get("weight") == 0 for message in answers):
        yield Fault("nothing_trainable", "every assistant message has weight 0, so there is nothing to learn")
    elif messages[-1]["role"] != "assistant":
        text = "the last message is not the assistant's; what follows the last answer is not learned"
        yield Fault("unanswered_end", text, f"messages[{len(messages) - 1}]", severity="warning")


def _tools(example: Mapping[str, Any], abilities: TemplateAbilities) -> Iterator[Fault]:
    tools = example.get("tools")
    yield from check_tools(tools)
    if isinstance(tools, list) and tools and not abilities.tools:
        text = "the model's chat template does not render `tools`; use a model that was made for tools, or remove them"
        yield Fault("template_tools", text, "tools")


def _normalise_message(message: Mapping[str, Any], abilities: TemplateAbilities) -> dict[str, Any]:
    normal = template_message(
        message["role"],
        message.get("content"),
        message.get("name"),
        abilities,
        tool_calls=message.get("tool_calls"),
        tool_call_id=message.get("tool_call_id"),
    )
    if message.get("weight") == 0:
        normal["weight"] = 0
    return normal
