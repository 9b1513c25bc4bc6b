"""Metrics and bootstrap intervals from sums by example."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune_api.tasks import Metric
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.evaluation.statistics import baseline, difference, interval, perplexity, scores
from finetune_trainer.tasks.kind import Measured


def examples(loss: list[float], tokens: list[int]) -> Measured:
    return Measured(np.array(loss), np.array(tokens), {Metric.TOKEN_ACCURACY: 0.5})


def test_metrics_are_means_over_tokens_not_over_examples() -> None:
    result = scores(examples([1.0, 30.0], [1, 9]), "tuned", seed=0)
    assert result.loss == pytest.approx(3.1)
    assert (result.token_accuracy, result.perplexity, result.bleu) == (0.5, None, None)
    assert scores(examples([1.0], [1]), "tuned", 0, {Metric.BLEU: 31.5}).bleu == 31.5


def test_the_interval_covers_the_mean_and_narrows_with_more_examples() -> None:
    random = np.random.default_rng(0)
    widths = []
    for count in (20, 2000):
        tokens = random.integers(5, 50, count)
        sums = tokens * random.normal(2.0, 0.5, count)
        found = interval(sums, tokens, seed=1)
        assert found.low < sums.sum() / tokens.sum() < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 5
    # Against theory: for equal lengths it is the mean plus or minus 1.96 standard errors.
    sums = random.normal(2.0, 0.5, 2000)
    found = interval(sums, np.ones(2000, np.int64), seed=1)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * sums.std() / math.sqrt(2000), rel=0.1)


def test_pairing_takes_out_what_makes_examples_hard() -> None:
    random = np.random.default_rng(0)
    tokens = np.full(50, 10)
    base = random.uniform(10, 50, 50)
    tuned = base - 1.0  # a small gain on every example
    found = difference(Measured(base, tokens), Measured(tuned, tokens), seed=0)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)
    alone = interval(base, tokens, seed=0)
    assert alone.high - alone.low > 0.5


def test_same_seed_same_interval() -> None:
    made = examples(np.random.default_rng(0).uniform(1, 9, 30).tolist(), list(range(3, 33)))
    assert scores(made, "tuned", 7) == scores(made, "tuned", 7)
    assert scores(made, "tuned", 7) != scores(made, "tuned", 8)


@pytest.mark.parametrize(("loss", "tokens"), [([0.0], [0]), ([2.0], [4])])
def test_one_example_or_nothing_to_measure(loss: list[float], tokens: list[int]) -> None:
    result = scores(examples(loss, tokens), "base", 0)
    assert result.loss_interval is not None
    assert result.loss_interval.low == result.loss_interval.high == result.loss


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error_not_a_score(bad: float) -> None:
    with pytest.raises(ArtifactInvalidError, match="the tuned model's loss is not finite on 1 of 2"):
        scores(examples([bad, 1.0], [1, 1]), "tuned", 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_baseline_that_is_not_finite_is_left_out_and_said(bad: float) -> None:
    found, notes = baseline(examples([bad, 1.0], [1, 1]), "few-shot", 0)
    assert found is None
    assert notes == [
        "the few-shot model's loss is not finite on 1 of 2 held-out examples: it is left out of the comparison"
    ]
    assert baseline(examples([1.0], [1]), "base", 0) == (scores(examples([1.0], [1]), "base", 0), [])


def test_a_hopeless_model_still_has_a_finite_perplexity() -> None:
    assert perplexity(1.5) == pytest.approx(math.exp(1.5))
    assert math.isfinite(perplexity(5000.0))
