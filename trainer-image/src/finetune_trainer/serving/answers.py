"""Answers as OpenAI's clients expect them: whole, or as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.serving.cohort import Piece
from finetune_trainer.serving.errors import ApiError
from finetune_trainer.serving.protocol import usage
from finetune_trainer.serving.tool_calls import Answered, PlainReading, Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is the same in every chunk of an answer."""

    chat: bool
    model: str
    run: int
    created: int = field(default_factory=lambda: int(time.time()))
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def envelope(self, *, chunk: bool) -> dict[str, Any]:
        """Return an answer without choices."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.key}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"run-{self.run}",
        }

    def choice(self, index: int, text: str, finish: str | None, calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Return a whole choice."""
        content: dict[str, Any] = {"text": text}
        if self.chat:
            message = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
            content = {"message": {**message, "tool_calls": list(calls)} if calls else message}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish}

    def delta(self, index: int, text: str | None, finish: str | None, *, first: bool = False) -> dict[str, Any]:
        """Return a part of a choice."""
        content: dict[str, Any] = {"text": text or ""}
        if self.chat:
            delta = {"role": "assistant"} if first else {}
            content = {"delta": delta if text is None else {**delta, "content": text}}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish}

    def call_delta(self, index: int, number: int, call: dict[str, Any]) -> dict[str, Any]:
        """Return a part of a choice that is a whole tool call."""
        delta = {"tool_calls": [{"index": number, **call}]}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


async def collect(
    shape: Shape,
    pieces: AsyncIterator[tuple[int, Piece]],
    prompt_tokens: int,
    make_reading: Callable[[], Reading] = PlainReading,
) -> dict[str, Any]:
    """Return the whole answer, once every choice is finished."""
    readings: dict[int, Reading] = defaultdict(make_reading)
    texts: dict[int, str] = defaultdict(str)
    choices: dict[int, dict[str, Any]] = {}
    completion = 0
    async for index, piece in pieces:
        texts[index] += readings[index].push(piece.text)
        if piece.finish:
            rest = readings[index].finish(piece.finish)
            reason = finish_reason(piece.finish, rest)
            choices[index] = shape.choice(index, texts[index] + rest.text, reason, rest.calls)
            completion += piece.tokens
    ordered = [choices[index] for index in sorted(choices)]
    return {**shape.envelope(chunk=False), "choices": ordered, "usage": usage(prompt_tokens, completion)}


def finish_reason(finish: str, rest: Answered) -> str:
    """Return OpenAI's word: an answer that was cut off says so, even when it has calls."""
    return "tool_calls" if rest.calls and finish == "stop" else finish


async def stream(
    shape: Shape,
    pieces: AsyncIterator[tuple[int, Piece]],
    prompt_tokens: int,
    choices: int,
    make_reading: Callable[[], Reading] = PlainReading,
    *,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """Yield the answer as server-sent events. An error in the middle is the last event, without [DONE].

    Text goes out as it comes; what may be a tool call is held back until it is whole.
    """
    envelope = shape.envelope(chunk=True)
    tail: dict[str, Any] = {"usage": None} if include_usage else {}

    def chunk(choice: dict[str, Any]) -> bytes:
        return event({**envelope, "choices": [choice], **tail})

    if shape.chat:
        for index in range(choices):
            yield chunk(shape.delta(index, "", None, first=True))
    readings: dict[int, Reading] = defaultdict(make_reading)
    tokens: dict[int, int] = {}
    try:
        async for index, piece in pieces:
            tokens[index] = piece.tokens
            text = readings[index].push(piece.text)
            rest = readings[index].finish(piece.finish) if piece.finish else Answered("")
            if text := text + rest.text:
                yield chunk(shape.delta(index, text, None))
            for number, call in enumerate(rest.calls):
                yield chunk(shape.call_delta(index, number, call))
            if piece.finish:
                yield chunk(shape.delta(index, None, finish_reason(piece.finish, rest)))
    except ApiError as error:
        yield event(error.body())
        return
    if include_usage:
        yield event({**envelope, "choices": [], "usage": usage(prompt_tokens, sum(tokens.values()))})
    yield b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
