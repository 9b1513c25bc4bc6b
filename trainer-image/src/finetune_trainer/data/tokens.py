"""Cutting to max_length, length statistics, and the tokenised folders that Train and Evaluate read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from finetune_api.status import LengthStats
from finetune_trainer.data.flow import Example
from finetune_trainer.data.problems import Fault, FileName, Findings, line_list
from finetune_trainer.errors import UserInputError
from finetune_trainer.tasks.kind import ExampleFormat


@dataclass(frozen=True, slots=True)
class Cut:
    """Examples that are kept, cut to max_length. `truncated` (something is not learned) and `dropped` are line numbers,
    without overlap."""

    kept: list[Example]
    truncated: list[int]
    dropped: list[int]

    @property
    def lost_percent(self) -> float:
        total = len(self.kept) + len(self.dropped)
        return 100 * (len(self.truncated) + len(self.dropped)) / total if total else 0.0


def percentile(sorted_values: Sequence[int], percent: int) -> int:
    """Nearest rank: the smallest value that at least `percent` of 100 values do not exceed."""
    return sorted_values[max(0, math.ceil(percent / 100 * len(sorted_values)) - 1)]


def length_stats(examples: Sequence[Example]) -> LengthStats:
    """Distribution of the examples' lengths before any cut, in tokens."""
    lengths = sorted(example.length for example in examples)
    p50, p90, p99 = (percentile(lengths, percent) for percent in (50, 90, 99))
    return LengthStats(min=lengths[0], p50=p50, p90=p90, p99=p99, max=lengths[-1])


def cut(examples: Sequence[Example], max_length: int, form: ExampleFormat) -> Cut:
    """Keep at most `max_length` tokens of each, as the task cuts; drop those in which nothing to learn remains."""
    kept, truncated, dropped = [], [], []
    for example in examples:
        whole = form.settled(example.tokens)
        tokens = form.cut(whole, max_length)
        if tokens is None:
            dropped.append(example.line)
        elif tokens is whole:
            kept.append(replace(example, tokens=whole))
        else:
            if not form.windowed:
                truncated.append(example.line)
            kept.append(replace(example, tokens=tokens, learned=form.learned(tokens)))
    return Cut(kept, truncated, dropped)


def note_cut(result: Cut, file: FileName, max_length: int, findings: Findings) -> None:
    for line in result.truncated:
        text = f"the example is longer than maxLength ({max_length} tokens) and is cut: the end is not learned"
        findings.add(file, line, [Fault("truncated", text, severity="warning")])
    for line in result.dropped:
        text = f"nothing to learn lies in the first {max_length} tokens (maxLength), so the example is left out"
        findings.add(file, line, [Fault("dropped", text, severity="warning")])


def refuse_great_loss(result: Cut, max_length: int, max_lost_percent: int, context: int, unit: str = "line") -> None:
    """Raise UserInputError when more examples are cut or dropped than `dataset.maxLostPercent` allows. `unit`: what
    the numbers of the examples count."""
    if result.lost_percent <= max_lost_percent:
        return
    lines = line_list(sorted([*result.truncated, *result.dropped]), unit=unit)
    longer = "raise hyperparameters.maxLength" if max_length < context else "use a model with a longer context"
    raise UserInputError(
        f"train data: {len(result.truncated)} examples would be cut and {len(result.dropped)} left out at maxLength "
        f"{max_length} tokens ({lines}): {result.lost_percent:.1f} % of all, and {max_lost_percent} % are allowed",
        advice=f"shorten these examples, {longer}, or raise dataset.maxLostPercent",
    )


def save_tokens(examples: Sequence[Example], folder: Path) -> None:
    """Write the examples as a `datasets` folder with the task's columns, lists of int32."""
    names = list(examples[0].tokens) if examples else ["input_ids", "labels"]
    columns = {name: _column([example.tokens[name] for example in examples]) for name in names}
    features = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in columns})
    table = pa.table(columns).cast(features.arrow_schema)
    datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(str(folder))


def _column(rows: Sequence[Sequence[int]]) -> pa.ListArray:
    """A list column built from one flat buffer: no Python object a token."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    offsets[1:] = np.cumsum([len(row) for row in rows])
    flat = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]) if rows else np.zeros(0, np.int32)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
