"""The next token follows from the scores, the settings and the sequence's own random numbers."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from finetune_trainer.serving.sampling import Sampling, choose, make_generator

SCORES = torch.tensor([1.0, 3.0, 2.0, -1.0])


def draw(
    sampling: Sampling, times: int = 200, seen: Counter[int] | None = None, scores: torch.Tensor = SCORES
) -> set[int]:
    generator = make_generator(0)
    return {choose(scores, sampling, seen or Counter(), generator) for _ in range(times)}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=0), {1}),
        (Sampling(temperature=1e-9), {1}),
        (Sampling(temperature=2.0), {0, 1, 2, 3}),
        (Sampling(temperature=2.0, top_k=2), {1, 2}),
        (Sampling(temperature=1.0, top_p=0.5), {1}),
        (Sampling(temperature=1.0, top_p=0.8), {1, 2}),
        (Sampling(temperature=1.0, top_p=1e-9), {1}),
    ],
)
def test_what_can_be_drawn(sampling: Sampling, expected: set[int]) -> None:
    assert draw(sampling) == expected


def test_penalties_lower_what_was_said() -> None:
    assert draw(Sampling(temperature=0, presence_penalty=1.5), seen=Counter({1: 1})) == {2}
    assert draw(Sampling(temperature=0, frequency_penalty=0.4), seen=Counter({1: 2})) == {1}
    assert draw(Sampling(temperature=0, frequency_penalty=0.4), seen=Counter({1: 3})) == {2}


def test_what_is_banned_is_never_drawn() -> None:
    scores = SCORES.clone()
    scores[1] = -torch.inf
    assert draw(Sampling(temperature=2.0), scores=scores) == {0, 2, 3}


def test_scores_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="not numbers"):
        choose(torch.tensor([float("nan"), 1.0]), Sampling(), Counter(), make_generator(0))


def test_the_seed_decides() -> None:
    def series(seed: int | None) -> list[int]:
        generator = make_generator(seed)
        return [choose(torch.zeros(50), Sampling(), Counter(), generator) for _ in range(10)]

    assert series(7) == series(7) != series(8)
    assert series(-1) == series(-1)
    assert series(None) != series(None)
