"""How likely a model finds the held-out answers: sums by example, from which every metric follows.

Only the scores at trained-on positions are computed (`logits_to_keep`): for a vocabulary of 150,000 the scores of a
whole batch would take more memory than the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

IGNORED = -100
BATCH_TOKENS = 8192  # padded tokens of a batch: bounds the activations
SCORE_BYTES = 2**28  # of a batch's scores in float32; four times that exist for a moment

Row = Mapping[str, Sequence[int]]
"""{"input_ids": [n], "labels": [n]}; the label of a position is its own token, -100 where it is not trained on."""


@dataclass(frozen=True, slots=True)
class ExampleScores:
    """Per example, shape [n]: summed loss in nats, trained-on tokens, and how many of them were ranked first."""

    loss: NDArray[np.float64]
    tokens: NDArray[np.int64]
    correct: NDArray[np.int64]

    @property
    def mean_loss(self) -> float:
        """Nats a trained-on token; 0 when there is none."""
        return float(self.loss.sum() / max(1, self.tokens.sum()))

    @property
    def token_accuracy(self) -> float:
        """Share of the trained-on tokens that were the most likely ones, 0 to 1."""
        return float(self.correct.sum() / max(1, self.tokens.sum()))


def request_tokens(rows: Sequence[Row]) -> float:
    """Mean tokens that stand before a row's last answer: what a model reads before it writes."""
    return float(np.mean([_before_answer(row["labels"]) for row in rows])) if rows else 0.0


def _before_answer(labels: Sequence[int]) -> int:
    """Where the last stretch of trained-on tokens begins."""
    place = next((at for at in reversed(range(len(labels))) if labels[at] != IGNORED), len(labels) - 1)
    while place > 0 and labels[place - 1] != IGNORED:
        place -= 1
    return place


def score(
    model: PreTrainedModel, rows: Sequence[Row], *, between_batches: Callable[[], None] = lambda: None
) -> ExampleScores:
    """Measure the model (in evaluation mode) on the rows, in their order. `between_batches` may raise to stop."""
    loss, tokens, correct = np.zeros(len(rows)), np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    vocabulary = model.get_output_embeddings().out_features  # the weights may be divided among processes
    for batch in batches(rows, vocabulary):
        between_batches()
        result = _score_batch(model, [rows[index] for index in batch])
        for array, values in zip((loss, tokens, correct), result, strict=True):
            array[batch] = values
    return ExampleScores(loss, tokens, correct)


def batches(rows: Sequence[Row], vocabulary: int) -> Iterator[list[int]]:
    """Indices of the rows in batches of like length, longest first: what does not fit is known at once."""
    batch: list[int] = []
    longest = 0
    positions = 0
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"])):
        trained = sum(label != IGNORED for label in rows[index]["labels"])
        longest = longest or len(rows[index]["input_ids"])
        size = len(batch) + 1
        scores = size * (positions + trained) * vocabulary * 4
        if batch and (size * longest > BATCH_TOKENS or scores > SCORE_BYTES):
            yield batch
            batch, longest, positions = [], len(rows[index]["input_ids"]), 0
        batch.append(index)
        positions += trained
    if batch:
        yield batch


@torch.no_grad()
def _score_batch(model: PreTrainedModel, rows: Sequence[Row]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    device = model.get_output_embeddings().weight.device
    inputs, mask, labels = (tensor.to(device) for tensor in _padded(rows))
    targets = labels[:, 1:]
    positions = (targets != IGNORED).any(dim=0).nonzero().flatten()  # of the scores that predict a trained-on token
    targets = targets[:, positions]
    kept = {"logits_to_keep": positions} if keeps_chosen_logits(model) else {}
    logits = model(input_ids=inputs, attention_mask=mask, use_cache=False, **kept).logits
    if not kept:
        logits = logits[:, positions]
    losses = torch.stack([cross_entropy(s.float(), t, reduction="none") for s, t in zip(logits, targets, strict=True)])
    trained = targets != IGNORED
    correct = (logits.argmax(dim=-1) == targets) & trained
    sums = (losses.double().sum(dim=1), trained.sum(dim=1), correct.sum(dim=1))
    return tuple(value.cpu().numpy() for value in sums)  # type: ignore[return-value]


def keeps_chosen_logits(model: PreTrainedModel) -> bool:
    """Whether the architecture computes scores for chosen positions only."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters


def _padded(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, attention mask and labels, each [rows, longest], padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    inputs = torch.zeros(len(rows), longest, dtype=torch.long)  # what stands under the mask does not matter
    mask = torch.zeros_like(inputs)
    labels = torch.full_like(inputs, IGNORED)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        inputs[index, :length] = torch.tensor(row["input_ids"])
        labels[index, :length] = torch.tensor(row["labels"])
        mask[index, :length] = 1
    return inputs, mask, labels
