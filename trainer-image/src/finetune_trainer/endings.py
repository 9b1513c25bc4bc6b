"""Which tokens end an answer, and which none ever holds: evaluation and server both ask here."""

from __future__ import annotations

from typing import Any


def end_ids(generation: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends an answer: those of the generation settings, where there are any, and the tokenizer's own."""
    listed = generation.eos_token_id if generation is not None else None
    listed = listed if isinstance(listed, list) else [listed]
    return frozenset(int(one) for one in [*listed, tokenizer.eos_token_id] if one is not None)


def never_written(tokenizer: Any, vocabulary: int, ends: frozenset[int]) -> list[int]:
    """Ids that are no answer: padding that ends nothing, and rows that only fill up a matrix of `vocabulary` rows."""
    pad = tokenizer.pad_token_id
    return [*([pad] if pad is not None and pad not in ends else []), *range(len(tokenizer), vocabulary)]
