"""Answers as OpenAI's clients expect them: whole, or as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.serving.cohort import Piece
from finetune_trainer.serving.errors import ApiError
from finetune_trainer.serving.protocol import usage


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

    def choice(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        """Return a whole choice."""
        content: dict[str, Any] = {"text": text}
        if self.chat:
            content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish}

    def delta(self, index: int, text: str | None, finish: str | None, *, first: bool = False) -> dict[str, Any]:
        """Return a part of a choice."""
        content: dict[str, Any] = {"text": text or ""}
        if self.chat:
            delta = {"role": "assistant"} if first else {}
            content = {"delta": delta if text is None else {**delta, "content": text}}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish}


async def collect(shape: Shape, pieces: AsyncIterator[tuple[int, Piece]], prompt_tokens: int) -> dict[str, Any]:
    """Return the whole answer, once every choice is finished."""
    texts: dict[int, list[str]] = {}
    ends: dict[int, Piece] = {}
    async for index, piece in pieces:
        texts.setdefault(index, []).append(piece.text)
        ends[index] = piece
    choices = [shape.choice(index, "".join(texts[index]), ends[index].finish) for index in sorted(ends)]
    completion = sum(piece.tokens for piece in ends.values())
    return {**shape.envelope(chunk=False), "choices": choices, "usage": usage(prompt_tokens, completion)}


async def stream(
    shape: Shape, pieces: AsyncIterator[tuple[int, Piece]], prompt_tokens: int, choices: int, *, include_usage: bool
) -> AsyncIterator[bytes]:
    """Yield the answer as server-sent events. An error in the middle is the last event, without [DONE]."""
    envelope = shape.envelope(chunk=True)
    tail: dict[str, Any] = {"usage": None} if include_usage else {}

    def chunk(choice: dict[str, Any]) -> bytes:
        return event({**envelope, "choices": [choice], **tail})

    if shape.chat:
        for index in range(choices):
            yield chunk(shape.delta(index, "", None, first=True))
    tokens: dict[int, int] = {}
    try:
        async for index, piece in pieces:
            tokens[index] = piece.tokens
            if piece.text:
                yield chunk(shape.delta(index, piece.text, None))
            if piece.finish:
                yield chunk(shape.delta(index, None, piece.finish))
    except ApiError as error:
        yield event(error.body())
        return
    if include_usage:
        yield event({**envelope, "choices": [], "usage": usage(prompt_tokens, sum(tokens.values()))})
    yield b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
