"""How much more likely a model makes the better answers than its base does: DPO's loss (arXiv 2305.18290, eq. 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from finetune_api.tasks import Metric
from finetune_trainer.evaluation.scoring import score
from finetune_trainer.masking import IGNORED
from finetune_trainer.tasks.kind import Measured, Row, no_interruption

ANSWERS = ("chosen_ids", "rejected_ids")


def log_probabilities(
    model: PreTrainedModel, pairs: Sequence[Row], *, between_batches: Callable[[], None] = no_interruption
) -> NDArray[np.float64]:
    """Of the chosen and of the rejected answers, each the sum over its tokens in nats, shape [n, 2]. The model is in
    evaluation mode."""
    rows = [_row(pair["prompt_ids"], pair[answer]) for pair in pairs for answer in ANSWERS]
    return -score(model, rows, between_batches=between_batches).loss.reshape(-1, 2)


def preferences(outputs: NDArray[np.float64], reference: NDArray[np.float64], beta: float) -> Measured:
    """`outputs` and `reference` are log-probabilities of the model and of its base, shape [n, 2].

    A reward is beta times what the model's log-probability is above the base's, in nats. A tie counts half: the base
    itself is at 0.5, as a toss of a coin. What is not finite stays so, and is seen in the loss.
    """
    with np.errstate(invalid="ignore"):
        rewards = beta * (outputs - reference)
        margin = rewards[:, 0] - rewards[:, 1]
        loss = np.logaddexp(0, -margin)
    right = np.where(margin == 0, 0.5, margin > 0)
    metrics = {Metric.REWARD_ACCURACY: float(right.mean()), Metric.REWARD_MARGIN: float(margin.mean())}
    return Measured(loss, np.ones(len(margin), np.int64), metrics, outputs)


def _row(prompt: Sequence[int], answer: Sequence[int]) -> Row:
    return {"input_ids": [*prompt, *answer], "labels": [*[IGNORED] * len(prompt), *answer]}
