"""The forms in which chat templates write tool calls, each with a reader that takes the calls out of a text.

Whatever is not wholly a well-formed call is a ValueError: the caller then shows the text as the model wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex  # type: ignore[import-untyped]
from transformers.utils.chat_parsing import ResponseParser

from finetune_trainer.messages import arguments_object

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """A text from its first call on, and whether the model ended it by itself. `end` is its end-of-turn token."""

    text: str
    tools: Tools
    ended: bool
    end: str = ""


@dataclass(frozen=True, slots=True)
class Form:
    """How a template writes calls. `opens` finds where calls begin; `read` gives the calls from there on and the text
    after them, or raises ValueError. `marks` are special tokens that `read` must see; `id_length` is what a template
    asks of the ids of calls, 0 for nothing."""

    opens: Any  # regex.Pattern, of the library that knows partial matches
    read: Callable[[Written], tuple[list[Call], str]]
    marks: tuple[str, ...] = ()
    id_length: int = 0


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


JSON = json.JSONDecoder(parse_constant=_no_number)
TAG_OPEN = regex.compile(r"\s*<tool_call>\s*")
TAG_CLOSE = regex.compile(r"\s*(?:</tool_call>)?")
LIST_OPEN = regex.compile(r"\[TOOL_CALLS\]\s*")
NAMED = regex.compile(r"\s*(?:\[TOOL_CALLS\])?\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?\[ARGS\]\s*")
OBJECT_OPEN = regex.compile(r"[\s;]*(?:<\|python_tag\|>)?\s*(?=\{)")
XML = {
    "start_anchor_pattern": r"\A",
    "fields": {
        "tool_calls": {
            "open_pattern": r"<tool_call>\s*<function=(?P<name>[^\n>]+)>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>",
                "value_parser": {"name": "text"},
            },
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"content": "text"},
    },
}


def _call(value: Any) -> Call:
    """A call written as an object; `parameters` is Llama's word for the arguments."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a call is an object with a name")
    arguments = arguments_object(value.get("arguments", value.get("parameters")))
    if arguments is None:
        raise ValueError("the arguments are an object")
    return Call(value["name"], arguments)


def _tagged(written: Written) -> tuple[list[Call], str]:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, one after the other: Hermes, Qwen 2.5 and 3."""
    calls, at = [], 0
    while opened := TAG_OPEN.match(written.text, at):
        value, at = JSON.raw_decode(written.text, opened.end())
        calls.append(_call(value))
        at = TAG_CLOSE.match(written.text, at).end()
    return calls, written.text[at:]


def _listed(written: Written) -> tuple[list[Call], str]:
    """`[TOOL_CALLS] [{"name": ..., "arguments": {...}}]`, or newer `[TOOL_CALLS]name[ARGS]{...}`: Mistral."""
    text = written.text
    at = LIST_OPEN.match(text).end()
    if text[at : at + 1] == "[":
        values, at = JSON.raw_decode(text, at)
        return [_call(value) for value in values], text[at:]
    calls = []
    while named := NAMED.match(text, at):
        value, at = JSON.raw_decode(text, named.end())
        calls.append(_call({"name": named["name"], "arguments": value}))
    return calls, text[at:]


def _bare(written: Written) -> tuple[list[Call], str]:
    """`{"name": ..., "parameters": {...}}` and nothing else: Llama 3. An object that is no call of a known tool is an
    answer in JSON."""
    names = {tool["function"]["name"] for tool in written.tools}
    calls, at = [], 0
    while opened := OBJECT_OPEN.match(written.text, at):
        value, at = JSON.raw_decode(written.text, opened.end())
        calls.append(_call(value))
    if written.text[at:].strip(" \n;") or not all(call.name in names for call in calls):
        raise ValueError("this is not only calls")
    return calls, ""


def _by_template(spec: Mapping[str, Any]) -> Callable[[Written], tuple[list[Call], str]]:
    """The reader for a `response_template`, which is how tokenizers tell transformers what their models write."""

    def read(written: Written) -> tuple[list[Call], str]:
        # A form may close a call by the very token that ended the turn, which a text does not show.
        for text in (written.text, written.text + written.end) if written.ended else (written.text,):
            parser = ResponseParser(spec, prefix="", tools=list(written.tools))
            try:
                events = parser.feed(text)
                message, _ = parser.finalize()
            except (ValueError, KeyError):
                continue
            open_calls = [event["type"] for event in events if event["field"] == "tool_calls"]
            if open_calls and (written.ended or open_calls[-1] == "region_close"):
                found = message["tool_calls"]
                listed = found if isinstance(found, list) else [found]
                return [_call(call["function"]) for call in listed], str(message.get("content") or "")
        raise ValueError("no call is whole")

    return read


def by_response_template(spec: Mapping[str, Any]) -> Form | None:
    """The form that a tokenizer's own `response_template` describes; None when that knows no calls."""
    field = spec.get("fields", {}).get("tool_calls", {})
    opened = field.get("open_pattern")
    if opened is None:
        literals = field.get("open")
        if not literals:
            return None
        opened = "|".join(map(regex.escape, [literals] if isinstance(literals, str) else literals))
    return Form(regex.compile(opened, regex.DOTALL), _by_template(spec), marks=(json.dumps(field).replace("\\", ""),))


TAGS = ("<tool_call>", "</tool_call>")
FORMS = (
    Form(regex.compile("<tool_call>"), _tagged, marks=TAGS),
    Form(regex.compile(XML["fields"]["tool_calls"]["open_pattern"]), _by_template(XML), marks=TAGS),  # type: ignore[index]
    Form(regex.compile(r"\[TOOL_CALLS\]"), _listed, ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"), id_length=9),
    Form(regex.compile(r"\A\s*(?:<\|python_tag\|>\s*)?\{"), _bare, marks=("<|python_tag|>",)),
)
