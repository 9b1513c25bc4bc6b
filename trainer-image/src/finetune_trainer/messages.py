"""Messages as chat templates take them. Preparing, measuring and serving all ask here, so that a model answers to
exactly the tokens it was trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any


@dataclass(frozen=True, slots=True)
class TemplateAbilities:
    """What the model's chat template can render."""

    tools: bool = True
    tool_calls: bool = True
    developer: bool = False


def template_abilities(tokenizer: Any) -> TemplateAbilities:
    """What the tokenizer's chat template can render, read from its source."""
    template = tokenizer.chat_template
    source = "\n".join(template.values()) if isinstance(template, dict) else template or ""
    has = {word: re.search(rf"\b{word}\b", source) is not None for word in ("tools", "tool_calls", "developer")}
    return TemplateAbilities(**has)


def template_message(
    role: str,
    content: str | Sequence[Mapping[str, Any]] | None,
    name: str | None,
    abilities: TemplateAbilities,
    *,
    tool_calls: Sequence[Mapping[str, Any]] | None = None,
    tool_call_id: str | None = None,
) -> dict[str, Any]:
    """A message in the form of templates: one text, no empty name, arguments of calls as objects. `content` is
    OpenAI's: a text, parts, or null.

    A developer message becomes a system message where the template does not know the role.
    """
    text = content if isinstance(content, str) else "".join(part["text"] for part in content or ())
    message: dict[str, Any] = {
        "role": "system" if role == "developer" and not abilities.developer else role,
        "content": text,
    }
    if name:
        message["name"] = name
    if tool_call_id is not None:
        message["tool_call_id"] = tool_call_id
    if tool_calls:
        message["tool_calls"] = [_template_call(call) for call in tool_calls]
    return message


def _template_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["function"]["name"], "arguments": arguments_object(call["function"]["arguments"])}
    return {"id": call["id"], "type": "function", "function": function}


def arguments_object(value: Any) -> dict[str, Any] | None:
    """The arguments of a call as an object: OpenAI has them as a JSON text, templates want the object. None when they
    are neither."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def template_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools as templates print them: always in one order of keys, whoever wrote them, and without `strict`, which
    speaks to a server and not to the model. None when there are none."""
    return [
        {"type": "function", "function": _template_function(tool["function"])}
        | {key: value for key, value in tool.items() if key not in ("type", "function")}
        for tool in tools or ()
    ] or None


def _template_function(function: Mapping[str, Any]) -> dict[str, Any]:
    first = [key for key in ("name", "description", "parameters") if key in function]
    rest = [key for key in function if key not in first and key != "strict"]
    return {key: function[key] for key in [*first, *rest]}


def render(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None, prompt: bool
) -> str:
    """The conversation as text; `prompt` ends it where the assistant speaks. Raises what the template raises.

    `weight` is ours, not the template's: a server never gets one.
    """
    shown = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    text = tokenizer.apply_chat_template(shown, tools=tools, tokenize=False, add_generation_prompt=prompt)
    assert isinstance(text, str)
    return text


def begin_ids(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before every text: none, a beginning of sequence, or several (GLM)."""
    found = tokenizer("a", return_special_tokens_mask=True)
    pairs = zip(found["input_ids"], found["special_tokens_mask"], strict=True)
    return [token for token, _ in takewhile(lambda pair: pair[1], pairs)]


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text that a model goes on from: with what the tokenizer puts before it, and without the end that
    some put behind it, after which there would be nothing to go on with."""
    return [*begin_ids(tokenizer), *encode_rendered(tokenizer, text)]


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """The ids of a rendered conversation: the template has written every special token itself."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
