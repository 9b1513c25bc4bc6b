"""How likely an encoder-decoder finds the held-out targets, each token given the true ones before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from finetune_trainer.evaluation.scoring import BATCH_TOKENS, IGNORED, SCORE_BYTES, ExampleScores
from finetune_trainer.tasks.kind import Row, no_interruption


def batch_of(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each (rows, its longest), padded on the right; labels by -100."""
    sources = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
    targets = [torch.tensor(row["labels"], dtype=torch.long) for row in rows]
    return {
        "input_ids": pad_sequence(sources, batch_first=True),  # what stands under the mask does not matter
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in sources], batch_first=True),
        "labels": pad_sequence(targets, batch_first=True, padding_value=IGNORED),
    }


def score(
    model: PreTrainedModel, rows: Sequence[Row], *, between_batches: Callable[[], None] = no_interruption
) -> ExampleScores:
    """Measure the model (in evaluation mode) on the rows, in their order. `between_batches` may raise to stop."""
    loss, tokens, correct = np.zeros(len(rows)), np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    vocabulary = model.get_output_embeddings().out_features
    for batch in batches(rows, vocabulary):
        between_batches()
        result = _score_batch(model, [rows[index] for index in batch])
        for array, values in zip((loss, tokens, correct), result, strict=True):
            array[batch] = values
    return ExampleScores(loss, tokens, correct)


def batches(rows: Sequence[Row], vocabulary: int) -> Iterator[list[int]]:
    """Indices of the rows in batches of like length, longest first: what does not fit is known at once."""
    batch: list[int] = []
    source = target = 0
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]["labels"]), -len(rows[i]["input_ids"]))):
        size = len(batch) + 1
        longer = max(source, len(rows[index]["input_ids"])), max(target, len(rows[index]["labels"]))
        if batch and (size * sum(longer) > BATCH_TOKENS or size * longer[1] * vocabulary * 4 > SCORE_BYTES):
            yield batch
            batch, longer = [], (len(rows[index]["input_ids"]), len(rows[index]["labels"]))
        batch.append(index)
        source, target = longer
    if batch:
        yield batch


@torch.no_grad()
def _score_batch(model: PreTrainedModel, rows: Sequence[Row]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    device = model.get_input_embeddings().weight.device
    inputs = {name: tensor.to(device) for name, tensor in batch_of(rows).items()}
    labels = inputs["labels"]
    logits = model(**inputs, use_cache=False).logits  # with the labels, the model makes its decoder's inputs itself
    losses = torch.stack([cross_entropy(s.float(), t, reduction="none") for s, t in zip(logits, labels, strict=True)])
    trained = labels != IGNORED
    correct = (logits.argmax(dim=-1) == labels) & trained
    sums = (losses.double().sum(dim=1), trained.sum(dim=1), correct.sum(dim=1))
    return tuple(value.cpu().numpy() for value in sums)  # type: ignore[return-value]
