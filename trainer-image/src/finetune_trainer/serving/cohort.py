"""Rows that are generated together: one prefill, then one forward call for a token of each.

A cohort is padded on the left, so the newest tokens of all rows stand in one column. Rows leave as they finish, and
with them the columns that only they needed; two cohorts of one lane are merged by padding the shorter one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from finetune_trainer.serving.lane import Lane
from finetune_trainer.serving.sampling import Sampling, choose, make_generator
from finetune_trainer.serving.text import Detokenizer, StopScanner
from finetune_trainer.serving.weights import ServedModel, Weights


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a row. `finish` is set on the last one: stop or length. `tokens` are those generated so far."""

    text: str
    tokens: int
    finish: str | None = None


@dataclass(slots=True, kw_only=True)
class Row:
    """One sequence being generated."""

    model: ServedModel
    prompt: Sequence[int]
    limit: int
    sampling: Sampling
    detokenizer: Detokenizer
    stops: StopScanner
    emit: Callable[[Piece | Exception], None]
    is_cancelled: Callable[[], bool]
    deadline: float
    seen: Counter[int] = field(default_factory=Counter)
    tokens: int = 0
    last: int = 0
    done: bool = False
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = make_generator(self.sampling.seed)

    def take(self, scores: torch.Tensor) -> None:
        """Choose the next token from scores of shape (vocabulary,), and pass on the text that it makes certain."""
        scores[self.model.banned] = -torch.inf
        self.last = choose(scores, self.sampling, self.seen, self.generator)
        self.tokens += 1
        self.seen[self.last] += 1
        ended = self.last in self.model.end_ids
        text = "" if ended else self.stops.push(self.detokenizer.push(self.last))
        finish = "stop" if ended or self.stops.hit else "length" if self.tokens >= self.limit else None
        if finish is not None and not self.stops.hit:
            text += self.stops.push(self.detokenizer.flush())
            finish = "stop" if self.stops.hit else finish
            text += self.stops.flush()
        if text or finish:
            self.done = finish is not None
            self.emit(Piece(text, self.tokens, finish))

    def fail(self, error: Exception) -> None:
        """End the row with an error, once."""
        if not self.done:
            self.done = True
            self.emit(error)


@dataclass(slots=True)
class Cohort:
    """Rows, their cache, and the mask of what in the cache is padding, of shape (rows, columns)."""

    lane: Lane
    rows: list[Row]
    cache: Any
    mask: torch.Tensor

    @property
    def alive(self) -> list[Row]:
        """The rows that go on."""
        return [row for row in self.rows if not row.done]


def prefill(weights: Weights, lane: Lane, rows: list[Row]) -> Cohort:
    """Read the prompts of some rows in one forward call, and choose the first token of each."""
    ids, mask, cache = lane.start([row.prompt for row in rows])
    cohort = Cohort(lane, rows, cache, mask)
    step(weights, cohort, ids)
    return cohort


def decode(weights: Weights, cohort: Cohort) -> None:
    """Add one token to every row."""
    ids = torch.tensor([[row.last] for row in cohort.rows])
    cohort.mask = pad(cohort.mask, (0, 1), value=1)
    step(weights, cohort, ids)


def step(weights: Weights, cohort: Cohort, ids: torch.Tensor) -> None:
    """Run the model on new columns, let every living row choose, and take out those that are done."""
    adapters = [row.model.adapter for row in cohort.rows]
    scores = weights.forward(cohort.lane, adapters, ids, cohort.mask, cohort.cache)
    for row, row_scores in zip(cohort.rows, scores, strict=True):
        if not row.done:
            row.take(row_scores)
    compact(cohort)


def compact(cohort: Cohort) -> None:
    """Take out rows that are done, and columns that are padding in every row that is left.

    A cache with recurrent layers cannot be cut: its finished rows are carried along until the last one ends.
    """
    keep = [index for index, row in enumerate(cohort.rows) if not row.done]
    if len(keep) == len(cohort.rows) or not keep or not is_cuttable(cohort.cache):
        return
    chosen = torch.tensor(keep)
    cohort.rows = [cohort.rows[index] for index in keep]
    cohort.mask = cohort.mask[chosen]
    cohort.cache.batch_select_indices(chosen)
    if is_plain(cohort.cache):
        padding = int(cohort.mask.any(dim=0).int().argmax())
        cohort.mask = cohort.mask[:, padding:]
        for layer in cohort.cache.layers:
            layer.keys, layer.values = layer.keys[..., padding:, :], layer.values[..., padding:, :]


def can_merge(first: Cohort, second: Cohort) -> bool:
    """Say whether two cohorts can go on as one."""
    return first.lane is second.lane and first.lane.merges and is_plain(first.cache) and is_plain(second.cache)


def merge(first: Cohort, second: Cohort) -> Cohort:
    """Return one cohort with the rows of both; neither is to be used any more."""
    width = max(first.mask.shape[1], second.mask.shape[1])
    for mine, theirs in zip(first.cache.layers, second.cache.layers, strict=True):
        mine.keys = torch.cat([widen(mine.keys, width), widen(theirs.keys, width)])
        mine.values = torch.cat([widen(mine.values, width), widen(theirs.values, width)])
    masks = [pad(cohort.mask, (width - cohort.mask.shape[1], 0)) for cohort in (first, second)]
    return Cohort(first.lane, first.rows + second.rows, first.cache, torch.cat(masks))


def widen(states: torch.Tensor, width: int) -> torch.Tensor:
    """Pad states of shape (rows, heads, columns, size) on the left to a width."""
    return pad(states, (0, 0, width - states.shape[-2], 0))


def is_cuttable(cache: Any) -> bool:
    """Say whether rows can be taken out of a cache."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def is_plain(cache: Any) -> bool:
    """Say whether a cache holds every column of every layer, so that columns can be added and cut."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)
