"""Data files of tests: written, read, and what was said about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.dataset import Columns
from finetune_api.tasks import Task
from finetune_trainer.data.formats.open_file import open_file
from finetune_trainer.data.problems import Findings
from finetune_trainer.data.rows import RowReading

Rows = list[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Found:
    """What came of a file. `faults`: (check, numbers, place of the first); `texts`: what people are told of each."""

    rows: Rows
    faults: list[tuple[str, list[int], str]]
    texts: dict[str, str]

    @property
    def values(self) -> list[dict[str, Any]]:
        return [row for _, row in self.rows]


def read_file(path: Path, content: bytes | None, name: str = "", max_bytes: int = 2**26) -> Found:
    """The rows of the file as they are. `content` None: it is written already."""
    if content is not None:
        path.write_bytes(content)
    findings = Findings()
    return _found(list(open_file(path, name, "train", findings, max_bytes=max_bytes).rows), findings)


def read_for(task: Task, path: Path, content: bytes | None, name: str = "", **columns: str) -> Found:
    """The rows as the task sees them; `columns` by their names in Python."""
    if content is not None:
        path.write_bytes(content)
    findings = Findings()
    reading = RowReading(task, Columns(**columns) if columns else None, 2**26)
    return _found(list(reading.rows(path, name, "train", findings)), findings)


def _found(rows: Rows, findings: Findings) -> Found:
    faults = [
        (finding.fault.check, finding.lines, finding.places[0])
        for finding in sorted(findings.sorted(), key=lambda finding: finding.lines)
    ]
    return Found(rows, faults, {finding.fault.check: finding.message for finding in findings.sorted()})
