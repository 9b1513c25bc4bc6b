"""Which examples are trained on, how often, and which are held out: by their keys, whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.problems import Fault, FileName, Findings
from finetune_trainer.data.spool import Part, Spool
from finetune_trainer.errors import UserInputError

# OpenAI's guide to supervised fine-tuning: at least 10 examples, and clear improvements begin at 50 to 100.
LEAST_EXAMPLES = 10  # below we refuse
FEW_EXAMPLES = 50  # below we warn
Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """Of every example in the spool, shape [n]: how often an epoch passes over it, and whether it is held out."""

    times: NDArray[np.uint8]
    held: NDArray[np.bool_]
    duplicates: int
    overlap: int

    @property
    def train_examples(self) -> int:
        return int(self.times.sum(dtype=np.int64))

    @property
    def validation_examples(self) -> int:
        return int(self.held.sum())


def split(
    spool: Spool,
    train: Sequence[Part],
    held: Part | None,
    fraction: float,
    findings: Findings,
    gone: NDArray[np.bool_] | None = None,
) -> Split:
    """Hold out `fraction` of the training data, or the examples of `held` that are not trained on. `gone`, shape [n]:
    examples that are on neither side.

    Raises UserInputError with fewer than LEAST_EXAMPLES, or when one of both sides would be empty.
    """
    examples = train[-1].after
    there = np.ones(len(spool), np.bool_) if gone is None else ~gone
    refuse_fewer(int(there[:examples].sum()))
    alike = _Alike.of(spool, np.flatnonzero(there[:examples] if held is None else there))
    duplicates = alike.later(below=examples)
    _note(spool, train, duplicates, "duplicate", "the example occurred before; it is trained on again", findings)
    times, chosen = np.zeros(len(spool), np.uint8), np.zeros(len(spool), np.bool_)
    times[:examples] = there[:examples]
    overlap: Positions = np.zeros(0, np.int64)
    if held is None:
        out = alike.first_groups(_wanted(alike.groups, fraction))
        times[out] = 0
        chosen[alike.firsts(out)] = True
    else:
        overlap = alike.shared(examples)
        chosen[held.place] = there[held.place]
        chosen[overlap] = False
        text = "the held-out example is also a training example; it is left out of the evaluation"
        _note(spool, [held], overlap, "overlap", text, findings)
        if not chosen.any():
            raise UserInputError(
                "validation data: every held-out example is also a training example, so nothing could be measured",
                advice="hold out examples that are not trained on, or set dataset.validation.fraction",
            )
    for part in train:
        if part.weight != 1:
            times[part.place] = weighted(times[part.place], spool.low[part.place], part.weight)
    result = Split(times, chosen, len(duplicates), len(overlap))
    note_few(result.train_examples, findings)
    return result


@dataclass(frozen=True, slots=True)
class _Alike:
    """Equal examples side by side: positions in the order of the keys, of equal keys the earlier first, and whether
    each begins a group of equal ones."""

    order: Positions
    begins: NDArray[np.bool_]

    @classmethod
    def of(cls, spool: Spool, positions: Positions) -> _Alike:
        high, low = spool.high[positions], spool.low[positions]
        order = np.lexsort((low, high))
        begins = np.ones(len(order), np.bool_)
        begins[1:] = np.diff(high[order]) != 0
        begins[1:] |= np.diff(low[order]) != 0
        return cls(positions[order], begins)

    @property
    def groups(self) -> int:
        return int(self.begins.sum())

    def later(self, below: int) -> Positions:
        """Positions below `below` whose example occurred before, in order."""
        again = self.order[~self.begins]
        return np.sort(again[again < below])

    def first_groups(self, count: int) -> Positions:
        """All positions of the `count` groups with the smallest keys, groups together."""
        ends = np.flatnonzero(self.begins)
        return self.order[: ends[count] if count < len(ends) else len(self.order)]

    def firsts(self, positions: Positions) -> Positions:
        """Of positions that `first_groups` gave, the first of each group."""
        return positions[self.begins[: len(positions)]]

    def shared(self, examples: int) -> Positions:
        """Positions from `examples` on that are equal to one before it, in order."""
        number = np.cumsum(self.begins) - 1
        trained = self.order[self.begins] < examples  # of each group: its first member is the earliest
        return np.sort(self.order[trained[number] & (self.order >= examples)])


def _wanted(groups: int, fraction: float) -> int:
    """How many different examples are held out: at least one, and never all. Raises UserInputError with fewer than
    two."""
    if groups < 2:
        raise UserInputError(
            f"train data: {groups} different example(s), and at least 2 are needed to hold one out",
            advice="add examples, or give dataset.validation a source of its own",
        )
    return min(max(1, round(fraction * groups)), groups - 1)


def weighted(times: NDArray[np.uint8], low: NDArray[np.uint64], weight: float) -> NDArray[np.uint8]:
    """How often an epoch passes over each example of a file of this weight: 2.5 is twice over all of them and a third
    time over a half, which the keys choose. At least one example is taken."""
    taken = np.flatnonzero(times)
    whole = int(weight)
    more = round((weight - whole) * len(taken))
    if not whole and len(taken):
        more = max(1, more)
    result = np.zeros_like(times)
    result[taken] = whole
    result[taken[np.argsort(low[taken], kind="stable")[:more]]] += 1
    return result


def _note(spool: Spool, parts: Sequence[Part], positions: Positions, check: str, text: str, findings: Findings) -> None:
    fault = Fault(check, text, severity="warning")
    for part in parts:
        inside = positions[(positions >= part.first) & (positions < part.after)]
        for position in inside:
            findings.add(part.file, spool.line(int(position)), [fault])


def refuse_fewer(examples: int) -> None:
    """`examples`: of the training data, those to be held out among them."""
    if examples < LEAST_EXAMPLES:
        raise UserInputError(
            f"train data: {examples} example(s), and at least {LEAST_EXAMPLES} are needed to learn anything from them",
            advice=f"add examples of the same kind; clear improvements begin at {FEW_EXAMPLES} to 100",
        )


def note_few(examples: int, findings: Findings, file: FileName = "train") -> None:
    if examples < FEW_EXAMPLES:
        text = f"only {examples} training examples; clear improvements begin at {FEW_EXAMPLES} to 100"
        findings.add(file, 0, [Fault("few_examples", text, severity="warning")])
