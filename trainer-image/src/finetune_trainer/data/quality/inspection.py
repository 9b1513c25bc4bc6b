"""Everything that Prepare does for the quality of a dataset, as one thing that it asks at three moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.cleaning import OverLong, Repeated
from finetune_api.dataset import DatasetSpec
from finetune_api.status import CleaningStep
from finetune_api.tasks import Task
from finetune_trainer.data.flow import Attached
from finetune_trainer.data.problems import Findings
from finetune_trainer.data.quality import repetition
from finetune_trainer.data.quality.cleaning import RowCleaner
from finetune_trainer.data.quality.excerpts import SHOWN, Excerpts
from finetune_trainer.data.quality.near_duplicates import SIMILARITY, Comparison
from finetune_trainer.data.quality.observe import Comparing, Counting, Looking
from finetune_trainer.data.quality.repetition import NearPair
from finetune_trainer.data.quality.samples import Samples
from finetune_trainer.data.split import Split
from finetune_trainer.data.spool import Part, Spool
from finetune_trainer.errors import UserInputError


class Inspection:
    """`attached` goes into the reading. After it `left_out` says what cleaning drops, after the split `compare` says
    what is nearly the same, and `finish` counts."""

    def __init__(self, task: Task, spec: DatasetSpec, findings: Findings) -> None:
        self._cleaning = spec.cleaning
        self._findings = findings
        self._rows = RowCleaner(task, spec.cleaning)
        self._dropped: dict[str, int] = {}  # by step, of those that look at all examples
        self._parts: Sequence[Part] = ()
        self.similarity = float(spec.cleaning.similarity or SIMILARITY)
        self.comparison = Comparison(self.similarity)
        self.counting = Counting()
        self.looking = Looking(findings, spec.sensitive_data)
        self.excerpts = Excerpts(findings, withhold=self.looking.looks)
        self.samples = Samples(findings, withhold=self.looking.looks)
        self.pairs: list[NearPair] = []
        self._shown: list[dict[str, Any]] = []
        self.near_duplicates = 0
        self.near_overlap = 0
        self.attached = Attached(
            cleaners=[self._rows],
            observers=[self.looking, Comparing(self.comparison), self.counting, self.excerpts, self.samples],
        )

    @property
    def drops_over_long(self) -> bool:
        return self._cleaning.over_long is OverLong.DROP

    def left_out(self, spool: Spool, train: Sequence[Part], held: Part | None) -> NDArray[np.bool_]:
        """Which examples cleaning leaves out, shape [n] of the spool. Raises UserInputError when too few remain."""
        self._refuse_great_loss()
        self._parts = [*train, held] if held else train
        examples = train[-1].after
        gone = np.zeros(len(spool), np.bool_)
        if self._cleaning.duplicates is Repeated.DROP:
            self._drop("duplicates", repetition.duplicates(spool, examples), gone)
        self.pairs = repetition.differing(self.comparison.pairs(), spool)
        near = repetition.near_duplicates(self.pairs, examples)
        self.near_duplicates = int((near < examples).sum())
        if self._cleaning.near_duplicates is Repeated.DROP:
            self._drop("nearDuplicates", near, gone)
        self._refuse_great_loss()
        return gone

    def compare(self, spool: Spool, sides: Split) -> None:
        """Note near-duplicates, and those that are on both sides."""
        there = (sides.times > 0) | sides.held
        staying = [pair for pair in self.pairs if there[pair.position] and there[pair.first]]
        overlap = repetition.near_overlap(staying, sides)
        self.near_overlap = len(overlap)
        measured = {pair.position for pair in overlap}
        again = [pair for pair in staying if sides.times[pair.position] and pair.position not in measured]
        for pairs, check, text in (
            (again, "near_duplicate", repetition.NEAR),
            (overlap, "near_overlap", repetition.NEAR_OVERLAP),
        ):
            repetition.note(pairs, check, text, spool, self._parts, self._findings)
            self._shown += [self._show(pair, check, spool) for pair in pairs[:SHOWN]]

    def shown_pairs(self) -> list[dict[str, Any]]:
        """The first pairs of each kind with a few words of both, for the report."""
        words = self.excerpts.of
        return [
            {
                **pair,
                "text": words(pair["file"], pair["line"]),
                "otherText": words(pair["otherFile"], pair["otherLine"]),
            }
            for pair in self._shown
        ]

    def _show(self, pair: NearPair, check: str, spool: Spool) -> dict[str, Any]:
        file, other = (repetition.file_of(at, self._parts) for at in (pair.position, pair.first))
        line, other_line = spool.line(pair.position), spool.line(pair.first)
        self.excerpts.also |= {(file, line), (other, other_line)}
        return {
            "check": check,
            "file": file,
            "line": line,
            "otherFile": other,
            "otherLine": other_line,
            "similarity": round(pair.similarity, 3),
        }

    def finish(self, over_long: int) -> None:
        """`over_long`: examples that were left out for their length. Raises UserInputError when too few remain."""
        if self.drops_over_long:
            self._dropped["overLong"] = over_long
        self._refuse_great_loss()

    @property
    def cleaned(self) -> list[CleaningStep]:
        """What was done, in the order of the steps."""
        return [CleaningStep(step=step, count=count) for step, count in (*self._rows.steps(), *self._dropped.items())]

    def _drop(self, step: str, positions: NDArray[np.int64], gone: NDArray[np.bool_]) -> None:
        fresh = positions[~gone[positions]]
        gone[fresh] = True
        self._dropped[step] = len(fresh)

    def _refuse_great_loss(self) -> None:
        lost = {"missingValues": self._rows.counts["missingValues"], **self._dropped}
        dropped, rows, allowed = sum(lost.values()), self._rows.rows, self._cleaning.max_dropped_percent
        if not dropped or (100 * dropped <= allowed * rows and dropped < rows):
            return
        steps = ", ".join(f"{step} {count}" for step, count in lost.items() if count)
        raise UserInputError(
            f"dataset.cleaning would leave out {dropped} of {rows} examples ({steps}), {100 * dropped / rows:.0f} % of "
            f"them, and {allowed} % are allowed",
            advice="look at what is left out, which is probably not what was meant; correct the data, ask for fewer "
            "steps, or raise dataset.cleaning.maxDroppedPercent",
        )
