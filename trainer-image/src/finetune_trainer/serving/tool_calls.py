"""Tools in a request, and tool calls in an answer, as OpenAI's clients know them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.messages import template_abilities
from finetune_trainer.serving.errors import InvalidRequest
from finetune_trainer.serving.protocol import ChatRequest, CompletionRequest
from finetune_trainer.serving.weights import ServedModel
from finetune_trainer.tool_calls import CallReader, call_form, decode, hidden_tokens
from finetune_trainer.tool_forms import Form


@dataclass(frozen=True, slots=True)
class Answered:
    """Something new of one choice: text, or at its end whole calls, in OpenAI's form."""

    text: str
    calls: Sequence[dict[str, Any]] = ()


@dataclass(slots=True)
class PlainReading:
    """An answer in which nothing is called."""

    def push(self, text: str) -> str:
        return text

    def finish(self, finish: str) -> Answered:
        return Answered("")


@dataclass(slots=True)
class ToolReading:
    """An answer in which tools may be called."""

    reader: CallReader
    parallel: bool

    def push(self, text: str) -> str:
        return self.reader.push(text)

    def finish(self, finish: str) -> Answered:
        """What is left when the generation has ended, by `stop` or by `length`."""
        text, calls = self.reader.finish(ended=finish == "stop")
        wanted = calls if self.parallel else calls[:1]
        return Answered(
            text,
            [
                {
                    "id": new_id(self.reader.form),
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
                for call in wanted
            ],
        )


Reading = PlainReading | ToolReading


def new_id(form: Form) -> str:
    """An id of a call. Some templates refuse any but their own length when the conversation goes on."""
    return uuid.uuid4().hex[: form.id_length] if form.id_length else f"call_{uuid.uuid4().hex[:24]}"


def require_tools(tokenizer: Any, wanted: ChatRequest) -> None:
    """Raise InvalidRequest when the request has tools, calls or results and the model's template cannot write them."""
    abilities = template_abilities(tokenizer)
    remedy = "Leave them out, or serve a model that was made for tools: its chat template writes them."
    if wanted.offered and not abilities.tools:
        raise InvalidRequest(f"This model's chat template does not render 'tools'. {remedy}", param="tools")
    uses = any(message.tool_calls or message.role == "tool" for message in wanted.messages)
    if uses and not abilities.tool_calls:
        raise InvalidRequest(f"This model's chat template does not render tool calls. {remedy}", param="messages")
    if wanted.offered and call_form(tokenizer) is None:
        raise InvalidRequest(
            "This model's chat template writes tool calls in a form that this server does not know. Serve the model "
            "with vLLM, or give its tokenizer a 'response_template' that describes the form.",
            param="tools",
        )


def decoder_for(
    model: ServedModel, wanted: ChatRequest | CompletionRequest, plain: Callable[[list[int]], str]
) -> Callable[[list[int]], str]:
    """Return the function that turns ids into text: with the marks of calls where tools may be called."""
    form, _ = _offer(model, wanted)
    if form is None:
        return plain
    hidden = hidden_tokens(model.decoder, form)
    return lambda ids: decode(model.decoder, ids, hidden)


def make_reading(model: ServedModel, wanted: ChatRequest | CompletionRequest) -> Callable[[], Reading]:
    """Return the function that makes a reading for each choice of the request."""
    form, tools = _offer(model, wanted)
    if form is None:
        return PlainReading
    end = str(model.tokenizer.eos_token or "")
    parallel = isinstance(wanted, ChatRequest) and wanted.parallel_tool_calls
    return lambda: ToolReading(CallReader(form, tools, end), parallel)


def _offer(model: ServedModel, wanted: ChatRequest | CompletionRequest) -> tuple[Form | None, list[dict[str, Any]]]:
    """The tools that may be called, and how calls are written; no form when there are none."""
    tools = wanted.offered if isinstance(wanted, ChatRequest) else None
    return (call_form(model.tokenizer), tools) if tools else (None, [])
