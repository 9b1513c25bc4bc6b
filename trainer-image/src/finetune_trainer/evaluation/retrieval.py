"""Held-out examples with the training examples before them that are nearest to what is asked.

What retrieval without training would reach. The embeddings need no other model: of each question the mean of the
base's own last hidden states, without what all questions have in common (Mu and Viswanath 2018: the mean vector
dominates such embeddings). Qdrant's embedded mode keeps and searches them, by cosine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.evaluation.questions import asked_text
from finetune_trainer.evaluation.scoring import BATCH_TOKENS

MOST_EXAMPLES = 10_000  # training examples among which is searched, the first ones: a forward pass each
MOST_TOKENS = 512  # of a question that are embedded
COLLECTION = "training-examples"

Example = Mapping[str, Any]


def nearest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Example],
    held_out: Sequence[Example],
    count: int,
) -> list[list[Example]]:
    """For each held-out example the `count` nearest training examples, the nearest first; none where nothing is asked
    in words. `model` is in evaluation mode."""
    known = [(example, text) for example in train if (text := asked_text(example)).strip()]
    texts = [asked_text(example) for example in held_out]
    asked = [at for at, text in enumerate(texts) if text.strip()]
    found: list[list[Example]] = [[] for _ in held_out]
    if not known or not asked:
        return found
    stored = embed(model, tokenizer, [text for _, text in known])
    centre = stored.mean(axis=0)
    wanted = embed(model, tokenizer, [texts[at] for at in asked])
    for at, places in zip(asked, search(stored - centre, wanted - centre, count), strict=True):
        found[at] = [known[place][0] for place in places]
    return found


def search(stored: NDArray[np.float32], wanted: NDArray[np.float32], count: int) -> list[list[int]]:
    """For each wanted vector the places of the nearest stored ones, the nearest first. Shapes [n, d] and [m, d]."""
    from qdrant_client import QdrantClient, models  # half a second, and for this baseline only

    client = QdrantClient(":memory:")
    client.create_collection(
        COLLECTION, vectors_config=models.VectorParams(size=stored.shape[1], distance=models.Distance.COSINE)
    )
    client.upload_collection(COLLECTION, vectors=stored, ids=range(len(stored)))
    requests = [models.QueryRequest(query=vector.tolist(), limit=count) for vector in wanted]
    try:
        answers = client.query_batch_points(COLLECTION, requests=requests)
    finally:
        client.close()
    return [[int(point.id) for point in answer.points] for answer in answers]


def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> NDArray[np.float32]:
    """The mean last hidden state of each text, shape [texts, width]."""
    rows = [tokenizer(text, verbose=False)["input_ids"][:MOST_TOKENS] for text in texts]
    vectors: dict[int, NDArray[np.float32]] = {}
    batch: list[int] = []
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at]))
    for at in order:
        if batch and (len(batch) + 1) * len(rows[batch[0]]) > BATCH_TOKENS:
            vectors |= dict(zip(batch, _means(model, [rows[one] for one in batch]), strict=True))
            batch = []
        batch.append(at)
    vectors |= dict(zip(batch, _means(model, [rows[one] for one in batch]), strict=True))
    return np.stack([vectors[at] for at in range(len(rows))])


@torch.no_grad()
def _means(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    device = model.get_input_embeddings().weight.device
    longest = max(1, *map(len, rows))
    inputs = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for at, row in enumerate(rows):
        inputs[at, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[at, : len(row)] = 1
    body = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    states = body(input_ids=inputs.to(device), attention_mask=mask.to(device), use_cache=False).last_hidden_state
    weights = mask.to(device).unsqueeze(-1)
    means = (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return np.asarray(means.cpu().numpy(), np.float32)
