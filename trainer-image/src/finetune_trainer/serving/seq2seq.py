"""Encoder-decoder models behind the same engine: the encoder reads the prompt, the decoder writes the answer.

Rows that arrive together share a batch. Those that arrive later run in a batch of their own beside it: a decoder that
counts its positions from 0 cannot go on with rows of different ages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from finetune_trainer.serving.errors import InvalidRequest
from finetune_trainer.serving.lane import Lane, Start
from finetune_trainer.tasks.seq2seq_steps import Reading

# Models with relative positions name no limit, and neither do some of their tokenizers.
NO_LIMIT, DEFAULT_CONTEXT = 1_000_000, 4096


@dataclass(frozen=True, slots=True)
class Seq2SeqLane(Lane):
    """The lane of an encoder-decoder. `first` are the tokens that every answer begins with, unseen."""

    first: tuple[int, ...]
    merges: ClassVar[bool] = False

    def start(self, prompts: Sequence[Sequence[int]]) -> Start:
        """Return the decoder's first columns; the prompts wait in the cache for the encoder."""
        ids = torch.tensor([self.first] * len(prompts), dtype=torch.long)
        return Start(ids, torch.ones_like(ids), Reading.of(prompts, torch.device("cpu")))

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: Reading, device: torch.device, options: dict[str, Any]
    ) -> torch.Tensor:
        """Return scores of shape (rows, columns, vocabulary); the first time the prompts are read as well."""
        cache.to(device)
        output = self.module(**cache.inputs(ids.to(device)), **options)
        cache.take(output)
        scores: torch.Tensor = output.logits
        return scores


def context_of(config: Any, tokenizer: Any) -> int:
    """Return how many tokens each side may have."""
    built_for = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(built_for) if built_for < NO_LIMIT else DEFAULT_CONTEXT


def answer_limit(lane: Seq2SeqLane, tokenizer: Any, context: int, prompt: int, answer: int | None) -> int:
    """Return how many tokens an answer may have: source and answer count apart. `prompt` is the source's tokens,
    with those that the tokenizer put around it. Raises InvalidRequest."""
    if prompt <= tokenizer.num_special_tokens_to_add():
        raise InvalidRequest("The prompt is empty: there is nothing to read.", param="prompt")
    room = context - len(lane.first)
    if prompt > context or (answer or 1) > room:
        raise InvalidRequest(
            f"This model reads at most {context} tokens and writes at most {room}. You requested an answer of "
            f"{answer or room} tokens to a prompt of {prompt}. Please shorten the prompt or lower max_tokens.",
            param="prompt" if prompt > context else "max_tokens",
            code="context_length_exceeded",
        )
    return answer or room


def refuse_chat(name: str) -> InvalidRequest:
    """Return the error for a conversation with such a model."""
    return InvalidRequest(
        f"The model {name!r} reads one text and writes another; it holds no conversation. Use /v1/completions, with "
        "the text as the prompt.",
        param="model",
    )
