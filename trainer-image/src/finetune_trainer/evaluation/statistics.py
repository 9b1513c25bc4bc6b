"""From sums by example to scores with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from finetune_api.status import Interval, Scores
from finetune_api.tasks import Metric
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.tasks.kind import Measured

RESAMPLES = 2000  # enough for two stable digits of a 95 % percentile interval
CHUNK = 100  # resamples drawn at once: 8 MB for 10,000 examples
HIGHEST_LOSS = 700.0  # nats; exp of more is no float. A perplexity beyond is as bad as this one


def perplexity(loss: float) -> float:
    """exp(loss in nats)."""
    return math.exp(min(HIGHEST_LOSS, loss))


def scores(examples: Measured, name: str, seed: int, generated: Mapping[Metric, float] | None = None) -> Scores:
    """Everything measured, `generated` included. Raises ArtifactInvalidError when the model's loss is not finite."""
    if not np.isfinite(examples.loss).all():
        bad = int((~np.isfinite(examples.loss)).sum())
        raise ArtifactInvalidError(
            f"the {name} model's loss is not finite on {bad} of {len(examples.loss)} held-out examples",
            advice="train with a lower learningRateMultiplier; when it is the base model, its precision overflows",
        )
    values = {metric.value: value for metric, value in {**examples.metrics, **(generated or {})}.items()}
    spread = interval(examples.loss, examples.weight, seed)
    more = {"lossInterval": spread, "requestTokens": examples.request_tokens}
    return Scores.model_validate({**values, "loss": examples.mean_loss, **more})


def baseline(
    examples: Measured, name: str, seed: int, generated: Mapping[Metric, float] | None = None
) -> tuple[Scores | None, list[str]]:
    """Metrics of a model that only serves as comparison: (None, a note that says so) when its loss is not finite.

    The tuned model can be measured all the same; and infinity cannot be written in JSON.
    """
    try:
        return scores(examples, name, seed, generated), []
    except ArtifactInvalidError as error:
        return None, [f"{error.message}: it is left out of the comparison"]


def difference(base: Measured, tuned: Measured, seed: int) -> Interval:
    """Interval of base loss minus tuned loss. Paired: every resample holds the same examples for both, which takes
    out what makes examples hard or easy for any model."""
    return interval(base.loss - tuned.loss, base.weight, seed)


def interval(sums: NDArray[np.float64], weights: NDArray[np.int64], seed: int) -> Interval:
    """95 % percentile bootstrap (Efron 1979) of sum(sums) / sum(weights), drawing whole examples: the tokens of one
    answer depend on each other."""
    count = len(sums)
    if count == 0 or weights.sum() == 0:
        return Interval(low=0.0, high=0.0)
    random = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES // CHUNK):
        # How often each example is drawn, shape [CHUNK, count].
        drawn = random.multinomial(count, np.full(count, 1 / count), size=CHUNK)
        means.append((drawn @ sums) / np.maximum(1, drawn @ weights))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(low=float(low), high=float(high))
