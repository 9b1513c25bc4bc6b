"""Tools, templates that write their calls, and a model that can learn to call them in seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from finetune_trainer.data.chat import normalise_chat
from finetune_trainer.messages import render, template_abilities
from tests.tiny_models import PROSE, make_tiny_tokenizer

HEAD = """\
{%- if tools -%}
{{- '<|system|>Tools: ' -}}
{%- for tool in tools -%}{{- tool | tojson ~ '\\n' -}}{%- endfor -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|user|><tool_response>' ~ message.content ~ '</tool_response><|end|>' -}}
{%- else -%}
{{- '<|' ~ message.role ~ '|>' ~ message.content -}}
"""
TAIL = """\
{{- '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
HERMES = f"""{HEAD}
{{%- for call in message.tool_calls or [] -%}}
{{{{- '\\n<tool_call>\\n{{"name": "' ~ call.function.name ~ '", "arguments": ' -}}}}
{{{{- call.function.arguments | tojson ~ '}}\\n</tool_call>' -}}}}
{{%- endfor -%}}
{TAIL}"""
LLAMA = f"""{HEAD}
{{%- for call in message.tool_calls or [] -%}}
{{{{- '{{"name": "' ~ call.function.name ~ '", "parameters": ' ~ call.function.arguments | tojson ~ '}}' -}}}}
{{%- endfor -%}}
{TAIL}"""
MISTRAL = f"""{HEAD}
{{%- for call in message.tool_calls or [] -%}}
{{%- if call.id | length != 9 -%}}{{{{- raise_exception('ids have 9 characters') -}}}}{{%- endif -%}}
{{{{- '[TOOL_CALLS] [' if loop.first -}}}}
{{{{- '{{"name": "' ~ call.function.name ~ '", "arguments": ' ~ call.function.arguments | tojson -}}}}
{{{{- ', "id": "' ~ call.id ~ '"}}' ~ (']' if loop.last else ', ') -}}}}
{{%- endfor -%}}
{TAIL}"""
NAMED_ARGS = f"""{HEAD}
{{%- for call in message.tool_calls or [] -%}}
{{{{- '[TOOL_CALLS]' ~ call.function.name ~ '[ARGS]' ~ call.function.arguments | tojson -}}}}
{{%- endfor -%}}
{TAIL}"""
XML = f"""{HEAD}
{{%- for call in message.tool_calls or [] -%}}
{{{{- '\\n<tool_call>\\n<function=' ~ call.function.name ~ '>\\n' -}}}}
{{%- for key, value in call.function.arguments | items -%}}
{{{{- '<parameter=' ~ key ~ '>\\n' ~ (value if value is string else value | tojson) ~ '\\n</parameter>\\n' -}}}}
{{%- endfor -%}}
{{{{- '</function>\\n</tool_call>' -}}}}
{{%- endfor -%}}
{TAIL}"""
UNKNOWN = f"""{HEAD}
{{%- for call in message.tool_calls or [] -%}}
{{{{- '@@' ~ call.function.name ~ '(' ~ call.function.arguments | tojson ~ ')@@' -}}}}
{{%- endfor -%}}
{TAIL}"""
TEMPLATES = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "named": NAMED_ARGS, "xml": XML}
MARKS = {
    "hermes": ["<tool_call>", "</tool_call>"],
    "mistral": ["[TOOL_CALLS]"],
    "named": ["[TOOL_CALLS]", "[ARGS]"],
    "xml": ["<tool_call>", "</tool_call>"],
}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    """A function of which every argument is required."""
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": f"The {name}.", "parameters": parameters}}


def call(name: str, number: int = 1, **arguments: Any) -> dict[str, Any]:
    """A call in OpenAI's form, with an id that every template takes."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call0000{number}", "type": "function", "function": function}


WEATHER = tool("weather", city={"type": "string"}, days={"type": "integer"})
CLOCK = tool("time", city={"type": "string"})


def tool_tokenizer(
    template: str = HERMES, *, marks: Sequence[str] = (), prose: Sequence[str] = PROSE, vocabulary: int = 400
) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a template that writes calls, and `marks` as special tokens."""
    tokenizer = make_tiny_tokenizer(prose, vocabulary=vocabulary)
    tokenizer.chat_template = template
    if marks:
        tokenizer.add_tokens(list(marks), special_tokens=True)
    return tokenizer


# --- an easy task: the question names a place and what is asked of it ---------------------------------------------

PLACES = ("Lisbon", "Oslo", "Rome", "Cork", "Bern", "Graz")
ASKED = {
    **dict.fromkeys(("Weather", "Rain", "Wind", "Sun"), ("weather",)),
    **dict.fromkeys(("Time", "Hour", "Clock", "Minute"), ("time",)),
    **dict.fromkeys(("Both", "All", "Each", "Everything"), ("weather", "time")),
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": {"city": {"type": "string"}}}}}
    for name in ("weather", "time")
]


def asked(word: str, place: str) -> dict[str, Any]:
    """A conversation that ends with the calls."""
    calls = [call(name, number, city=place) for number, name in enumerate(ASKED[word])]
    messages = [
        {"role": "user", "content": f"{word} {place}"},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    return {"messages": messages, "tools": TOOLS, "parallel_tool_calls": True}


def answered(place: str) -> dict[str, Any]:
    """A conversation that goes on to what the assistant makes of a result."""
    calling = asked("Weather", place)
    result = {"role": "tool", "tool_call_id": "call00000", "content": f"{place} sun"}
    return {
        **calling,
        "messages": [*calling["messages"], result, {"role": "assistant", "content": f"{place} is sunny."}],
    }


def easy_data() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out examples: every place and every word is in both, no pair of them is."""
    rows = [(n + m, asked(word, place)) for n, word in enumerate(ASKED) for m, place in enumerate(PLACES)]
    held_out = [row for number, row in rows if number % 4 == 3]
    train = [row for number, row in rows if number % 4 != 3]
    return [*train, *(answered(place) for place in PLACES[1:])], [*held_out, answered(PLACES[0])]


def easy_tokenizer() -> PreTrainedTokenizerFast:
    """Made of the rendered task itself, so that a conversation is short and every place is one token."""
    plain = tool_tokenizer()
    train, held_out = easy_data()
    normal = [normalise_chat(row, template_abilities(plain)) for row in [*train, *held_out]]
    return tool_tokenizer(
        prose=[render(plain, row["messages"], tools=row["tools"], prompt=False) for row in normal], vocabulary=700
    )
