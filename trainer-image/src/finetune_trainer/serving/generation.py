"""Between a request and the engine: prompts, limits, rows, and the pieces that come back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import anyio
from starlette.requests import Request

from finetune_trainer.messages import template_abilities
from finetune_trainer.serving import seq2seq
from finetune_trainer.serving.cohort import Piece, Row
from finetune_trainer.serving.engine import Engine, make_decode
from finetune_trainer.serving.errors import ApiError, BodyTooLarge, ContextExceeded, GenerationFailed, InvalidRequest
from finetune_trainer.serving.prompts import render_chat
from finetune_trainer.serving.protocol import ChatRequest, CompletionRequest
from finetune_trainer.serving.seq2seq import Seq2SeqLane, refuse_chat
from finetune_trainer.serving.text import Detokenizer, StopScanner
from finetune_trainer.serving.tool_calls import decoder_for, require_tools
from finetune_trainer.serving.weights import ServedModel

# Tokenisers are not for two threads at a time.
_one_at_a_time = threading.Lock()


@dataclass(slots=True)
class Ticket:
    """The answers of one request on their way: events come from the engine's thread, and are read in the loop."""

    engine: Engine
    model: ServedModel
    rows: int
    started: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _events: asyncio.Queue[tuple[int, Piece | Exception]] = field(default_factory=asyncio.Queue)

    def put(self, index: int, event: Piece | Exception) -> None:
        """Take an event; called by the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    def cancel(self) -> None:
        """Tell the engine that nobody waits any more."""
        self.cancelled = True

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield (choice, piece) until all choices are finished; raise the ApiError that ended one."""
        metrics, name = self.engine.metrics, self.model.name
        tokens: dict[int, int] = {}
        left = self.rows
        try:
            while left:
                index, event = await self._events.get()
                if isinstance(event, Exception):
                    raise event if isinstance(event, ApiError) else GenerationFailed()
                if not tokens:
                    metrics.first_token.labels(name).observe(time.monotonic() - self.started)
                tokens[index] = event.tokens
                left -= event.finish is not None
                yield index, event
            metrics.generation.labels(name).observe(time.monotonic() - self.started)
        finally:
            self.cancel()
            metrics.completion_tokens.labels(name).inc(sum(tokens.values()))


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body; raise BodyTooLarge as soon as that is known, without reading the rest."""
    message = f"The body is larger than the {limit} bytes that this server accepts."
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise BodyTooLarge(message)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise BodyTooLarge(message)
    return bytes(body)


async def tokenize(model: ServedModel, wanted: ChatRequest | CompletionRequest) -> list[list[int]]:
    """Return the ids of each prompt; in a thread, since a long one takes a while."""

    def work() -> list[list[int]]:
        with _one_at_a_time:
            if isinstance(wanted, ChatRequest):
                if isinstance(model.lane, Seq2SeqLane):
                    raise refuse_chat(model.name)
                require_tools(model.tokenizer, wanted)
                abilities = template_abilities(model.tokenizer)
                messages = [one.to_template(abilities) for one in wanted.messages]
                return [render_chat(model.tokenizer, messages, wanted.offered)]
            return [model.encode(prompt) for prompt in wanted.prompts]

    return await anyio.to_thread.run_sync(work)


def answer_limit(model: ServedModel, prompt: int, wanted: ChatRequest | CompletionRequest) -> int:
    """Return how many tokens an answer may have; raise InvalidRequest or ContextExceeded when that is none."""
    if isinstance(model.lane, Seq2SeqLane):
        return seq2seq.answer_limit(model.lane, model.tokenizer, model.context, prompt, wanted.answer_tokens)
    param = "messages" if isinstance(wanted, ChatRequest) else "prompt"
    if prompt == 0:
        raise InvalidRequest("The prompt is empty: it has no token that the model could go on from.", param=param)
    answer = wanted.answer_tokens
    if prompt + (answer or 1) > model.context:
        raise ContextExceeded(context=model.context, prompt=prompt, answer=answer, param=param)
    return answer or model.context - prompt


def submit(
    engine: Engine, model: ServedModel, wanted: ChatRequest | CompletionRequest, prompts: Sequence[list[int]]
) -> Ticket:
    """Queue a request: n rows for each prompt, all or none."""
    ticket = Ticket(engine, model, rows=len(prompts) * wanted.n)
    limits = [answer_limit(model, len(prompt), wanted) for prompt in prompts]
    rows = [
        make_row(ticket, wanted, prompts[at // wanted.n], limits[at // wanted.n], index=at) for at in range(ticket.rows)
    ]
    engine.submit(rows)
    engine.metrics.prompt_tokens.labels(model.name).inc(sum(map(len, prompts)))
    return ticket


def make_row(
    ticket: Ticket, wanted: ChatRequest | CompletionRequest, prompt: list[int], limit: int, *, index: int
) -> Row:
    """Return the row of one choice."""
    # A completion goes on in the prompt's sentence, so the tokens before tell whether it starts with a space.
    goes_on = isinstance(wanted, CompletionRequest) and not isinstance(ticket.model.lane, Seq2SeqLane)
    before = prompt if goes_on else ()
    return Row(
        model=ticket.model,
        prompt=prompt,
        limit=limit,
        sampling=wanted.sampling(ticket.model.defaults, index % wanted.n),
        detokenizer=Detokenizer(decoder_for(ticket.model, wanted, make_decode(ticket.model)), before),
        stops=StopScanner(list(wanted.stop)),
        emit=lambda event: ticket.put(index, event),
        is_cancelled=lambda: ticket.cancelled,
        deadline=ticket.started + ticket.engine.config.request_timeout_seconds,
    )
