"""From a data file to rows in a task's own names: read, rename, parse cells, convert."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.dataset import Columns
from finetune_api.tasks import Task
from finetune_trainer.data.columns import ColumnMapping
from finetune_trainer.data.conversions import Conversions
from finetune_trainer.data.formats.cells import read_cells
from finetune_trainer.data.formats.form import Form
from finetune_trainer.data.formats.open_file import open_file
from finetune_trainer.data.problems import FileName, Findings


@dataclass(frozen=True, slots=True)
class RowReading:
    """What a file is read for. `max_bytes`: most that it may unpack to."""

    task: Task
    columns: Columns | None
    max_bytes: int

    def rows(self, path: Path, name: str, file: FileName, findings: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number, row) as the task checks it; what is wrong before that goes into `findings`.

        `name` is what the user calls the file. Raises UserInputError when the file as a whole cannot be read, or does
        not have what `dataset.columns` names.
        """
        findings.note_name(file, name)
        mapping, conversions = ColumnMapping(self.columns), Conversions(self.task)
        opened = open_file(path, name, file, findings, max_bytes=self.max_bytes)
        if opened.columns is not None:
            mapping.refuse_undeclared(opened.columns, file)
            findings.note_keys(file, opened.columns)
        for number, row in opened.rows:
            if not findings.keys(file):
                findings.note_keys(file, row)
            ours = mapping.apply(row)
            if opened.form is Form.TABLE:
                ours, faults = read_cells(ours, self.task)
                if findings.add(file, number, faults):
                    continue
            ours, faults = conversions.convert(ours)
            if not findings.add(file, number, faults):
                yield number, ours
        mapping.refuse_unseen(file)
        conversions.report(file, findings)
