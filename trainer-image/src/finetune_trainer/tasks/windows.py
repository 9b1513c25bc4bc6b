"""Texts that are longer than a model reads at once: windows that overlap, so that nothing is left unread.

Training, evaluation and the server lay out tokens here and nowhere else: what was trained on is what is measured,
and what was measured is what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.conditions import FailureReason
from finetune_trainer.errors import UserInputError
from finetune_trainer.tasks.kind import Row, no_interruption

UNKNOWN_LIMIT = 512  # tokens, where neither model nor tokenizer names a limit: what encoders are trained with
OVERLAP = 3  # a third of a window is read again in the next one
# RoBERTa and its kin count positions from the padding id on: 514 positions are 512 tokens.
BEHIND_PADDING = (
    "roberta",
    "camembert",
    "mpnet",
    "longformer",
    "data2vec-text",
    "ibert",
    "luke",
    "xmod",
    "lilt",
    "esm",
)
LEAST_ROOM = 8  # tokens of the text that must fit beside a question
BATCH_TOKENS = 8192  # padded tokens of a batch: bounds the activations

Span = tuple[int, int]
"""Characters or tokens [start, end)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole text as tokens, uncut. `body` are the tokens that a window slides over: the text, or a question's
    context. `offsets` are the characters of each token of the body, without the space before it; `type_ids` is
    empty for models that know no segments."""

    input_ids: Sequence[int]
    type_ids: Sequence[int]
    body: Span
    offsets: Sequence[Span]

    @property
    def around(self) -> int:
        """Tokens before and after the body: they are in every window."""
        return len(self.input_ids) - (self.body[1] - self.body[0])


@dataclass(frozen=True, slots=True)
class Window:
    """What the model reads at once. Its tokens from position `first` on are the body's [part)."""

    input_ids: Sequence[int]
    type_ids: Sequence[int]
    part: Span
    first: int

    @property
    def here(self) -> slice:
        """Where the part stands among the window's tokens."""
        return slice(self.first, self.first + self.part[1] - self.part[0])

    @property
    def row(self) -> Row:
        """The window as columns of numbers, for queues that know only those."""
        return {"input_ids": self.input_ids, "type_ids": self.type_ids, "part": self.part, "first": [self.first]}

    @classmethod
    def of(cls, row: Row) -> Window:
        return cls(row["input_ids"], row["type_ids"], (row["part"][0], row["part"][1]), row["first"][0])


def require_encoder(config: Any, mapping: Any, source: str, use: str) -> None:
    """Raise UserInputError (ModelInvalid) unless the model reads a word with what stands on both sides of it."""
    architectures = [str(name) for name in config.architectures or []]
    wrong = [name for name in architectures if name.endswith(("ForCausalLM", "ForConditionalGeneration"))]
    readable = type(config) in mapping and type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if wrong or not readable or getattr(config, "is_encoder_decoder", False):
        raise UserInputError(
            f"{source} cannot be used to {use}: it is a {(wrong or architectures or [config.model_type])[0]}, and the "
            "task needs an encoder, which reads what stands before and after a word",
            advice="use a model such as BERT, RoBERTa, DeBERTa or ModernBERT",
            reason=FailureReason.MODEL_INVALID,
        )


def positions(config: Any) -> int | None:
    """Tokens for which the model has positions; None where it names no limit."""
    found = getattr(config, "max_position_embeddings", None)
    if not found:
        return None
    behind = any(name in config.model_type for name in BEHIND_PADDING)
    return int(found) - ((config.pad_token_id or 0) + 1 if behind else 0)


def context_limit(config: AutoConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the model reads at once, special tokens included."""
    limit = int(min(positions(config) or tokenizer.model_max_length, tokenizer.model_max_length))
    return limit if limit < 10**6 else UNKNOWN_LIMIT  # tokenizers say 10**30 when they do not know


def lay_out(tokenizer: PreTrainedTokenizerBase, text: str, question: str | None = None) -> Layout:
    """Tokens of a text, or of a question and the text that it is about."""
    texts = (text,) if question is None else (question, text)
    encoded = tokenizer(*texts, return_offsets_mapping=True, truncation=False, verbose=False)
    sequence = len(texts) - 1
    places = [index for index, part in enumerate(encoded.sequence_ids(0)) if part == sequence]
    body = (places[0], places[-1] + 1) if places else (0, 0)
    offsets = [_without_space(text, span) for span in encoded["offset_mapping"][slice(*body)]]
    return Layout(encoded["input_ids"], encoded.get("token_type_ids", []), body, offsets)


def _without_space(text: str, span: Span) -> Span:
    """Some tokenizers count the space before a word as part of its first token."""
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def parts(length: int, room: int) -> list[Span]:
    """Overlapping parts [start, end) of at most `room` tokens that together cover [0, length)."""
    if length <= room:
        return [(0, length)]
    step = max(1, room - room // OVERLAP)
    starts = [*range(0, length - room, step), length - room]
    return [(start, start + room) for start in starts]


def margin(part: Span, span: Span, length: int) -> int:
    """How many tokens the model sees on the narrower side of the span; the ends of the text are no edges.
    Negative: the span is not in the part."""
    before = span[0] - part[0]
    after = part[1] - span[1]
    if before < 0 or after < 0:
        return -1
    return min(length if part[0] == 0 else before, length if part[1] == length else after)


def windows(layout: Layout, limit: int) -> list[Window]:
    """The windows of a layout. Raises ValueError when a question leaves no room for its text."""
    length = layout.body[1] - layout.body[0]
    room = limit - layout.around
    if length > room and room < LEAST_ROOM:
        raise ValueError(f"the question leaves {max(0, room)} of {limit} tokens for the text; shorten the question")
    return [
        Window(
            sliced(layout.input_ids, layout.body, part),
            sliced(layout.type_ids, layout.body, part),
            part,
            layout.body[0],
        )
        for part in parts(length, room)
    ]


def sliced(ids: Sequence[int], body: Span, part: Span) -> list[int]:
    """The ids with only a part of the body; empty when there are none."""
    return [*ids[: body[0]], *ids[body[0] + part[0] : body[0] + part[1]], *ids[body[1] :]]


@torch.no_grad()
def run(
    model: PreTrainedModel,
    found: Sequence[Window],
    outputs: Sequence[str],
    between_batches: Callable[[], None] = no_interruption,
) -> list[NDArray[np.float32]]:
    """The model's raw scores for the tokens of each window: shape [tokens, scores of a token].

    `outputs` names the model's outputs; several are put side by side. `between_batches` may raise to stop.
    """
    results: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(found)
    for batch in _batches([len(window.input_ids) for window in found]):
        between_batches()
        inputs = {name: ids.to(model.device) for name, ids in batch_inputs([found[index] for index in batch]).items()}
        answer = model(**inputs)
        scores = [getattr(answer, name).float() for name in outputs]
        together = torch.cat([score if score.dim() == 3 else score.unsqueeze(-1) for score in scores], dim=-1)
        array = together.cpu().numpy()
        for row, index in enumerate(batch):
            results[index] = array[row, : len(found[index].input_ids)]
    return results


def batch_inputs(batch: Sequence[Window]) -> dict[str, torch.Tensor]:
    """What the model's forward takes, each [windows, longest]."""
    inputs = {
        "input_ids": padded([window.input_ids for window in batch]),
        "attention_mask": padded([[1] * len(window.input_ids) for window in batch]),
    }
    if all(window.type_ids for window in batch):
        inputs["token_type_ids"] = padded([window.type_ids for window in batch])
    return inputs


def padded(rows: Sequence[Sequence[int]], fill: int = 0) -> torch.Tensor:
    """Rows of ids as one tensor [rows, longest], filled on the right."""
    longest = max(map(len, rows))
    tensor = torch.full((len(rows), longest), fill, dtype=torch.long)
    for index, row in enumerate(rows):
        tensor[index, : len(row)] = torch.tensor(row)
    return tensor


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first: what does not fit into memory is known at once."""
    batch: list[int] = []
    longest = 1
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * longest > BATCH_TOKENS:
            yield batch
            batch = []
        longest = longest if batch else max(1, lengths[index])
        batch.append(index)
    if batch:
        yield batch
