"""Which token comes next: one row at a time, with the row's own settings and its own random numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose tokens. Temperature 0 takes the likeliest one; top_k 0 leaves it off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None


def make_generator(seed: int | None) -> torch.Generator:
    """Return random numbers for one sequence, so that its neighbours in a batch cannot change its answer."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        # PyTorch takes 64 bits; OpenAI allows negative seeds.
        generator.manual_seed(seed & 0xFFFF_FFFF_FFFF_FFFF)
    return generator


def penalize(scores: torch.Tensor, seen: Counter[int], frequency: float, presence: float) -> torch.Tensor:
    """Return scores, of shape (vocabulary,), lowered for the tokens that the answer has already."""
    if not seen or not (frequency or presence):
        return scores
    ids = torch.tensor(list(seen))
    counts = torch.tensor(list(seen.values()), dtype=scores.dtype)
    lowered = scores.clone()
    lowered[ids] -= counts * frequency + presence
    return lowered


def choose(scores: torch.Tensor, sampling: Sampling, seen: Counter[int], generator: torch.Generator) -> int:
    """Return the next token.

    `scores` are float32 logits on the CPU, of shape (vocabulary,); minus infinity marks what must not be chosen.
    Raises ValueError when they are not numbers.
    """
    if torch.isnan(scores).any():
        raise ValueError("the model's scores are not numbers")
    scores = penalize(scores, seen, sampling.frequency_penalty, sampling.presence_penalty)
    if sampling.temperature == 0:
        return int(scores.argmax())
    # Float64, and the maximum taken off first, so that a tiny temperature cannot overflow.
    scaled = (scores.double() - scores.max().double()) / sampling.temperature
    kept, order = scaled.sort(descending=True, stable=True)
    if sampling.top_k > 0:
        kept, order = kept[: sampling.top_k], order[: sampling.top_k]
    probabilities = kept.softmax(-1)
    # The nucleus is the shortest head that reaches top_p; the likeliest token is always in it.
    outside = probabilities.cumsum(-1) - probabilities >= sampling.top_p
    outside[0] = False
    drawn = torch.multinomial(probabilities.masked_fill(outside, 0.0), 1, generator=generator)
    return int(order[drawn])
