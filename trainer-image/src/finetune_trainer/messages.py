"""Messages as chat templates take them. Preparing, measuring and serving all ask here, so that a model answers to
exactly the tokens it was trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    role: str, content: str | Sequence[Mapping[str, Any]] | None, name: str | None, abilities: TemplateAbilities
) -> dict[str, Any]:
    """A message in the form of templates: one text, no empty name. `content` is OpenAI's: a text, parts, or null.

    A developer message becomes a system message where the template does not know the role.
    """
    text = content if isinstance(content, str) else "".join(part["text"] for part in content or ())
    message = {"role": "system" if role == "developer" and not abilities.developer else role, "content": text}
    return {**message, "name": name} if name else message


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


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """The ids of a rendered conversation: the template has written every special token itself."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
