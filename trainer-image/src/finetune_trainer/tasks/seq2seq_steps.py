"""An encoder-decoder step by step: the source is read once, then the answer is written token by token.

Evaluation and the server both go through here, so that what was measured is what is served: greedy, without the beam
search and the length rules that a model's generation settings may name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from finetune_trainer.endings import end_ids, never_written
from finetune_trainer.tasks.seq2seq_data import target_head, target_ids


def empty_cache() -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


@dataclass(slots=True)
class Reading:
    """Sources that are answered together. `source` and `mask` are of shape (rows, columns), padded on the right;
    `states`, of shape (rows, columns, width), is what the encoder made of them, None before the first step."""

    source: torch.Tensor
    mask: torch.Tensor
    states: torch.Tensor | None = None
    cache: EncoderDecoderCache = field(default_factory=empty_cache)

    @classmethod
    def of(cls, sources: Sequence[Sequence[int]], device: torch.device) -> Reading:
        """The start of reading some sources. They are padded on the right: many encoders count positions from 0."""
        rows = [torch.tensor(ids, dtype=torch.long) for ids in sources]
        masks = [torch.ones(len(ids), dtype=torch.long) for ids in sources]
        source, mask = pad_sequence(rows, batch_first=True), pad_sequence(masks, batch_first=True)
        return cls(source.to(device), mask.to(device))

    def inputs(self, ids: torch.Tensor) -> dict[str, Any]:
        """What the model is called with for the next tokens, `ids` of shape (rows, new tokens)."""
        read: dict[str, Any] = {"input_ids": self.source}
        if self.states is not None:
            read = {"encoder_outputs": BaseModelOutput(last_hidden_state=self.states)}
        return {
            **read,
            "attention_mask": self.mask,
            "decoder_input_ids": ids,
            "past_key_values": self.cache,
            "use_cache": True,
        }

    def to(self, device: torch.device) -> None:
        """Go on on a device."""
        self.source, self.mask = self.source.to(device), self.mask.to(device)

    @property
    def layers(self) -> list[Any]:
        """Keys and values of what is written, a layer each."""
        layers: list[Any] = self.cache.self_attention_cache.layers
        return layers

    def take(self, output: Any) -> None:
        """Keep what a later step needs of a step's output."""
        self.states = output.encoder_last_hidden_state

    def batch_select_indices(self, chosen: torch.Tensor) -> None:
        """Go on with some of the rows, of indices `chosen`."""
        chosen = chosen.to(self.mask.device)
        self.source, self.mask = self.source[chosen], self.mask[chosen]
        self.states = self.states[chosen] if self.states is not None else None
        self.cache.batch_select_indices(chosen)


def first_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the decoder is given before it writes: the token that training starts every target with, and those that
    the tokenizer puts before every target (a beginning, a language)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = target_head(tokenizer)
    if hasattr(inner, "prepare_decoder_input_ids_from_labels"):
        labels = torch.tensor([target_ids(tokenizer, "a")])
        return [int(inner.prepare_decoder_input_ids_from_labels(labels=labels)[0, 0]), *head]
    return [int(inner.config.decoder_start_token_id), *head]


@torch.no_grad()
def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sources: Sequence[Sequence[int]], limit: int
) -> list[list[int]]:
    """The most likely next token, again and again: what the model writes for each source, at most `limit` tokens,
    its end included where it ends by itself."""
    device = model.get_input_embeddings().weight.device
    ends = end_ids(model.generation_config, tokenizer)
    reading = Reading.of(sources, device)
    ids = torch.tensor([first_tokens(model, tokenizer)] * len(sources), device=device)
    written: list[list[int]] = [[] for _ in sources]
    going = list(range(len(sources)))
    banned: list[int] | None = None
    for _ in range(limit):
        output = model(**reading.inputs(ids))
        reading.take(output)
        scores = output.logits[:, -1].float()
        banned = never_written(tokenizer, scores.shape[-1], ends) if banned is None else banned
        scores[:, banned] = -torch.inf
        ids = scores.argmax(dim=-1, keepdim=True)
        for row, token in zip(going, ids.flatten().tolist(), strict=True):
            written[row].append(token)
        kept = [at for at, row in enumerate(going) if written[row][-1] not in ends]
        if not kept:
            break
        if len(kept) < len(going):
            chosen = torch.tensor(kept, device=device)
            reading.batch_select_indices(chosen)
            ids, going = ids[chosen], [going[at] for at in kept]
    return written
