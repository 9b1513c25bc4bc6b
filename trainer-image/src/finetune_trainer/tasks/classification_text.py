"""Texts as rows of tokens, rows as batches, batches as scores: the same way in training, evaluation and the server."""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.tasks.kind import Row, no_interruption

BATCH_TOKENS = 8192  # padded tokens of a batch: bounds the activations
READ = ("input_ids", "token_type_ids")  # what a model reads of a row; the rest of it is to be learned


@dataclass(frozen=True, slots=True)
class Layout:
    """The special tokens that a tokenizer puts before, between and after texts. BERT: [CLS] a [SEP] b [SEP]."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Layout:
        """Read off a pair of texts."""
        found = tokenizer("a", "b", return_special_tokens_mask=True, padding=False, truncation=False)
        runs: list[tuple[int, list[int]]] = []
        for token, special in zip(found["input_ids"], found["special_tokens_mask"], strict=True):
            if not runs or runs[-1][0] != special:
                runs.append((special, []))
            runs[-1][1].append(token)
        texts = [at for at, (special, _) in enumerate(runs) if not special]
        first, last = (texts[0], texts[-1]) if texts else (0, 0)
        between = runs[first + 1][1] if last > first else []
        before = runs[0][1] if first > 0 else []
        return cls(tuple(before), tuple(between), tuple(runs[-1][1] if last < len(runs) - 1 else ()))

    def kept(self, ids: Sequence[int], most: int, *, pair: bool) -> list[int] | None:
        """Positions of at most `most` of the tokens: all special ones, and the beginnings of the texts. Of two texts
        the longer one is cut first. None when no token of a text would be left."""
        start, end = len(self.prefix), len(ids) - len(self.suffix)
        border = self._border(ids, start, end) if pair else None
        if border is None:
            room = most - start - len(self.suffix)
            return [*range(start + min(room, end - start)), *range(end, len(ids))] if room > 0 else None
        second = border + len(self.middle)
        room = most - start - len(self.middle) - len(self.suffix)
        if room < 2:
            return None
        one, two = share(border - start, end - second, room)
        return [*range(start + one), *range(border, second + two), *range(end, len(ids))]

    def _border(self, ids: Sequence[int], start: int, end: int) -> int | None:
        """Where the tokens between two texts begin. Texts cannot hold them: Prepare refuses special tokens."""
        width = len(self.middle)
        places = range(start, end - width + 1) if width else ()
        return next((at for at in places if tuple(ids[at : at + width]) == self.middle), None)


def share(one: int, two: int, room: int) -> tuple[int, int]:
    """How many tokens of texts of `one` and `two` tokens fit into `room`, taking from the longer first."""
    shorter = min(one, two, room // 2)
    return (min(one, room - shorter), shorter) if one > two else (shorter, min(two, room - shorter))


def tokenize(tokenizer: PreTrainedTokenizerBase, layout: Layout, text: str, pair: str | None) -> dict[str, array[int]]:
    """The columns that a model reads, uncut. Where a tokenizer puts nothing between two texts, a line end does."""
    if pair is not None and not layout.middle:
        text, pair = f"{text}\n{pair}", None
    found = tokenizer(text, pair, padding=False, truncation=False, verbose=False)
    return {name: array("i", found[name]) for name in READ if name in found}


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills a batch up. It stands under the mask, so that any will do."""
    chosen = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(chosen or 0)


def tell_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Decoders find the last token of a text by the padding after it, so that the model must know what fills up."""
    model.config.get_text_config().pad_token_id = padding_id(tokenizer)


def padded(rows: Sequence[Row], pad: int) -> dict[str, torch.Tensor]:
    """What the model reads, and the attention mask: each [rows, longest], int64, padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    columns = {
        name: torch.full((len(rows), longest), pad if name == "input_ids" else 0) for name in READ if name in rows[0]
    }
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        mask[index, :length] = 1
        for name, column in columns.items():
            column[index, :length] = torch.as_tensor(row[name])
    return {**columns, "attention_mask": mask}


@torch.no_grad()
def logits(
    model: PreTrainedModel,
    rows: Sequence[Row],
    pad: int,
    between_batches: Callable[[], None] = no_interruption,
) -> NDArray[np.float64]:
    """The model's (in evaluation mode) score of each label for each row, shape [rows, labels]."""
    accepted = parameters(model)
    device = next(model.parameters()).device
    found: dict[int, NDArray[np.float64]] = {}
    for batch in batches([len(row["input_ids"]) for row in rows]):
        between_batches()
        inputs = padded([rows[index] for index in batch], pad)
        output = model(**{name: value.to(device) for name, value in inputs.items() if name in accepted}).logits
        found.update(zip(batch, output.double().cpu().numpy(), strict=True))
    return np.stack([found[index] for index in range(len(rows))])


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of rows of these lengths in batches of like length, longest first: what does not fit is known at
    once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def parameters(model: PreTrainedModel) -> Mapping[str, Any]:
    """What the architecture's forward takes by name; an adapter around it takes anything."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(type(inner).forward).parameters
