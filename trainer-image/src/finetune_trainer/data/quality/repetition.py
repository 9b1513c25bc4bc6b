"""What repetition means for a dataset: what is left out when that is asked for, and what is measured too well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.problems import Fault, Findings
from finetune_trainer.data.quality.near_duplicates import Pair
from finetune_trainer.data.split import Split
from finetune_trainer.data.spool import Part, Spool

NEAR = (
    "the example is nearly one that stands before it: the model sees it as often as there are such; "
    "dataset.cleaning.nearDuplicates: Drop leaves it out"
)
NEAR_OVERLAP = (
    "the held-out example is nearly a training example, so that the model is measured on what it has learned by heart; "
    "dataset.cleaning.nearDuplicates: Drop leaves it out"
)


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two examples that are nearly the same, by their positions in the spool, and how alike they are, 0 to 1."""

    position: int
    first: int
    similarity: float


def differing(pairs: Sequence[Pair], spool: Spool) -> list[NearPair]:
    """Without those that are equal to the letter, which are duplicates."""
    high, low = spool.high, spool.low
    return [
        NearPair(pair.index, pair.first, pair.similarity)
        for pair in pairs
        if high[pair.index] != high[pair.first] or low[pair.index] != low[pair.first]
    ]


def duplicates(spool: Spool, examples: int) -> NDArray[np.int64]:
    """Positions of the training examples (the first `examples`) that occurred before, in order."""
    keys = np.stack([spool.high[:examples], spool.low[:examples]], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)
    return np.setdiff1d(np.arange(examples), first)


def near_duplicates(pairs: Sequence[NearPair], examples: int) -> NDArray[np.int64]:
    """Positions of the examples that are nearly a training example before them, in order."""
    return np.array([pair.position for pair in pairs if pair.first < examples], np.int64)


def near_overlap(pairs: Sequence[NearPair], sides: Split) -> list[NearPair]:
    """One pair a held-out example of whose group of near-duplicates a member is trained on; `first` is such a one."""
    group: dict[int, int] = {}
    for pair in pairs:  # in the order of the later ones, so that the earlier one's group is known
        group[pair.position] = group.setdefault(pair.first, pair.first)
    trained: dict[int, int] = {}
    for member in sorted(group):
        if sides.times[member]:
            trained.setdefault(group[member], member)
    alike = {pair.position: pair.similarity for pair in pairs}
    return [
        NearPair(member, trained[group[member]], alike.get(member, alike.get(trained[group[member]], 1.0)))
        for member in sorted(group)
        if sides.held[member] and group[member] in trained
    ]


def note(
    pairs: Sequence[NearPair], check: str, text: str, spool: Spool, parts: Sequence[Part], findings: Findings
) -> None:
    """A warning for each, with the other example as its place."""
    for pair in pairs:
        file, other = file_of(pair.position, parts), file_of(pair.first, parts)
        named = "" if other == file else f" of {other}"
        where = f"like {findings.unit(other)} {spool.line(pair.first)}{named}, {100 * pair.similarity:.0f} % alike"
        findings.add(file, spool.line(pair.position), [Fault(check, text, where, severity="warning")])


def file_of(position: int, parts: Sequence[Part]) -> str:
    return next(part.file for part in parts if part.first <= position < part.after)
