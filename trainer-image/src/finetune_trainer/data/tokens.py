"""Cutting to max_length, length statistics, and the tokenised folders that Train and Evaluate read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from finetune_api.status import LengthStats
from finetune_trainer.data.flow import Attached, Example, Side
from finetune_trainer.data.problems import Fault, FileName, Finding, Findings, line_list
from finetune_trainer.data.split import Split
from finetune_trainer.data.spool import ColumnWriter, Spool
from finetune_trainer.errors import UserInputError
from finetune_trainer.masking import IGNORED
from finetune_trainer.tasks.kind import ExampleFormat

DROPPED = "nothing to learn lies in the first {} tokens (maxLength), so the example is left out"
TRUNCATED = "the example is longer than maxLength ({} tokens) and is cut: the end is not learned"
OVER_LONG = "the example is longer than maxLength ({} tokens) and is left out, as dataset.cleaning.overLong asks"
DATA_FILE = "data-00000-of-00001.arrow"  # as the `datasets` library names it


@dataclass(slots=True)
class Stored:
    """What came of the examples of one side. `rows` are what is trained on, several of an example that is read in
    windows. `tokens` are of the kept ones, `learned` those that are trained on; `longest` is the longest kept example;
    `lost` has the lines of those that were cut or dropped. An example that an epoch passes over twice counts twice.
    `over_long` are those that were left out on request, each counted once. `labels`: how often each label is learned,
    where the task has labels."""

    side: Side
    examples: int = 0
    rows: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    truncated: int = 0
    dropped: int = 0
    over_long: int = 0
    lost: dict[FileName, Finding] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)

    def add(self, example: Example, times: int, *, more: bool = False) -> None:
        """`more`: it is a further row of the example that was added last."""
        self.rows += times
        self.examples += 0 if more else times
        self.tokens += times * len(example.tokens["input_ids"])
        self.learned += times * example.learned
        self.longest = max(self.longest, example.length)
        for label in example.tokens["labels"] if self.labels else ():
            if label != IGNORED:
                self.labels[label] += times

    @property
    def lost_percent(self) -> float:
        total = self.examples + self.dropped
        return 100 * (self.truncated + self.dropped) / total if total else 0.0


def length_stats(lengths: NDArray[np.uint32], times: NDArray[np.uint8]) -> LengthStats:
    """Distribution of the lengths before any cut, in tokens, each counted as often as an epoch passes over it."""
    trained = lengths[times > 0]
    counts = np.bincount(trained, weights=times[times > 0]).astype(np.int64)
    p50, p90, p99 = (percentile(counts, percent) for percent in (50, 90, 99))
    return LengthStats(min=int(trained.min()), p50=p50, p90=p90, p99=p99, max=int(trained.max()))


def percentile(counts: NDArray[np.int64], percent: int) -> int:
    """Nearest rank: the smallest value that at least `percent` of 100 values do not exceed. `counts[value]`: how many
    there are of it."""
    rank = max(1, math.ceil(percent / 100 * int(counts.sum())))
    return int(np.searchsorted(np.cumsum(counts), rank))


def store(
    spool: Spool,
    split: Split,
    max_length: int,
    form: ExampleFormat,
    folder: Path,
    findings: Findings,
    attached: Attached,
    *,
    drop_over_long: bool = False,
) -> tuple[Stored, Stored]:
    """Write every example of both sides, cut, into the dataset folder: one pass, one example at a time.
    `drop_over_long`: leave out what would have to be cut.

    Returns what came of the training and of the held-out examples. Raises OSError when the volume is full.
    """
    labels = len(form.facts.labels)
    with SideWriter("train", folder, labels) as train, SideWriter("validation", folder, labels) as validation:
        for position, example in enumerate(spool.examples()):
            times = int(split.times[position])
            if not times and not split.held[position]:
                continue
            whole = replace(example, tokens=form.settled(example.tokens))
            side = train if times else validation
            kept = _cut(whole, max_length, form, side.stored, times or 1, findings, drop_over_long)
            if kept:
                side.add(kept, times or 1, attached)
            for tokens in form.beside(whole.tokens, max_length) if kept and times else ():
                side.add_more(replace(whole, tokens=tokens, learned=form.learned(tokens)), times)
    return train.stored, validation.stored


def _cut(
    example: Example,
    max_length: int,
    form: ExampleFormat,
    stored: Stored,
    times: int,
    findings: Findings,
    drop_over_long: bool,
) -> Example | None:
    """At most `max_length` tokens, as the task cuts; None when nothing to learn remains."""
    tokens = form.cut(example.tokens, max_length)
    if tokens is example.tokens:
        return example
    fault: Fault | None = None
    if drop_over_long and not form.windowed:
        stored.over_long += 1
        fault = Fault("over_long", OVER_LONG.format(max_length), severity="warning")
        findings.add(example.file, example.line, [fault])
        return None
    if tokens is None:
        stored.dropped += times
        fault = Fault("dropped", DROPPED.format(max_length), severity="warning")
    elif not form.windowed:
        stored.truncated += times
        fault = Fault("truncated", TRUNCATED.format(max_length), severity="warning")
    if fault:
        stored.lost.setdefault(example.file, Finding(fault, example.file)).add(example.line, "")
        findings.add(example.file, example.line, [fault])
    return replace(example, tokens=tokens, learned=form.learned(tokens)) if tokens else None


def refuse_great_loss(stored: Stored, max_length: int, max_lost_percent: int, context: int, findings: Findings) -> None:
    """Raise UserInputError when more examples are cut or dropped than `dataset.maxLostPercent` allows."""
    if stored.lost_percent <= max_lost_percent:
        return
    places = [line_list(lost.lines, unit=findings.unit(file), count=lost.count) for file, lost in stored.lost.items()]
    if len(places) > 1:
        places = [f"{file} {place}" for file, place in zip(stored.lost, places, strict=True)]
    longer = "raise hyperparameters.maxLength" if max_length < context else "use a model with a longer context"
    raise UserInputError(
        f"train data: {stored.truncated} examples would be cut and {stored.dropped} left out at maxLength "
        f"{max_length} tokens ({'; '.join(places)}): {stored.lost_percent:.1f} % of all, and {max_lost_percent} % are "
        "allowed",
        advice=f"shorten these examples, {longer}, or raise dataset.maxLostPercent",
    )


class SideWriter:
    """Writes one side: a folder of the `datasets` library, which Train and Evaluate map into memory, and the same
    examples as text, a line each."""

    def __init__(self, side: Side, folder: Path, labels: int) -> None:
        self.stored = Stored(side, labels=[0] * labels)
        self._folder = folder / side
        self._folder.mkdir(parents=True)
        self._texts = (folder / f"{side}.jsonl").open("w", encoding="utf-8")
        self._columns: ColumnWriter | None = None

    def add(self, example: Example, times: int, attached: Attached) -> None:
        """Write the example `times` times."""
        self.stored.add(example, times)
        writer = self._columns or self._begin(list(example.tokens))
        for _ in range(times):
            writer.add(example.tokens)
            self._texts.write(f"{example.text}\n")
            attached.kept(self.stored.side, example)

    def add_more(self, example: Example, times: int) -> None:
        """A further row of the example that was added last, whose text is there already."""
        self.stored.add(example, times, more=True)
        for _ in range(times):
            (self._columns or self._begin(list(example.tokens))).add(example.tokens)

    def __enter__(self) -> SideWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._texts:
            columns = self._columns or self._begin(["input_ids", "labels"])
            if error:
                columns.abandon()
            else:
                columns.close()

    def _begin(self, names: list[str]) -> ColumnWriter:
        features = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in names})
        datasets.DatasetInfo(features=features).write_to_directory(str(self._folder))
        (self._folder / "state.json").write_text(json.dumps(STATE), encoding="utf-8")
        self._columns = ColumnWriter(self._folder / DATA_FILE, names, None, described=False)
        return self._columns


# What `Dataset.save_to_disk` leaves beside the data, and `load_from_disk` reads.
STATE: dict[str, Any] = {
    "_data_files": [{"filename": DATA_FILE}],
    "_fingerprint": "prepared",
    "_format_columns": None,
    "_format_kwargs": {},
    "_format_type": None,
    "_output_all_columns": False,
    "_split": None,
}
