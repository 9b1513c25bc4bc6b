"""All files of a dataset, read one after the other into the spool."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.conditions import FailureReason
from finetune_api.dataset import DataFile, DatasetSpec
from finetune_trainer import artifacts
from finetune_trainer.data.examples import read_examples
from finetune_trainer.data.flow import Attached
from finetune_trainer.data.problems import FileName, Findings
from finetune_trainer.data.rows import RowReading
from finetune_trainer.data.spool import Part, Spool
from finetune_trainer.errors import UserInputError
from finetune_trainer.sources.datafile import describe, joined, name_of
from finetune_trainer.tasks.kind import ExampleFormat

log = logging.getLogger(__name__)
Fetch = Callable[[DataFile, Path], Path]
"""(what the spec names, an empty folder for downloads) -> the file or folder."""


@dataclass(slots=True)
class DatasetReading:
    """Reads the files that a dataset names. `scratch` is for downloads, each of which is removed once it was read."""

    reading: RowReading
    form: ExampleFormat
    findings: Findings
    attached: Attached
    fetch: Fetch
    scratch: Path
    digests: dict[FileName, str] = field(default_factory=dict)

    def read(self, spec: DatasetSpec, spool: Spool) -> tuple[list[Part], Part | None]:
        """The training files' places in the spool, and the held-out file's where there is one.

        Raises UserInputError when a file cannot be read as a whole; what is wrong with its rows is in `findings`.
        """
        train = [self._file(file, data, weight, spool) for file, data, weight in spec.train.parts]
        self.form.end_of_training_data(self.findings)
        held = None
        if spec.validation.fraction is None:
            held = self._file("validation", spec.validation, 1.0, spool)
        spool.end()
        return train, held

    @property
    def sha256(self) -> str:
        """Of the data as read."""
        return joined(list(self.digests.values()))

    def _file(self, file: FileName, data: DataFile, weight: float, spool: Spool) -> Part:
        folder = self.scratch / str(len(self.digests))
        folder.mkdir(parents=True)
        path = self.fetch(data, folder)
        before = _state(path)
        digest = artifacts.sha256_of(path)
        self._refuse_twice(file, digest)
        self.digests[file] = digest
        rows = self.reading.rows(path, name_of(data), file, self.findings)
        part = spool.add_file(file, read_examples(rows, file, self.form, self.findings, self.attached), weight)
        if _state(path) != before:
            raise UserInputError(
                f"{file} data: {describe(data)} changed while it was read",
                advice="wait until it is written whole, then start the run again with another rerunToken",
                reason=FailureReason.SOURCE_UNAVAILABLE,
            )
        shutil.rmtree(folder)
        return part

    def _refuse_twice(self, file: FileName, digest: str) -> None:
        first = next((name for name, known in self.digests.items() if known == digest), None)
        if first and file != "validation":  # a held-out file that is trained on is found by its examples
            raise UserInputError(
                f"dataset.{first} and dataset.{file} are the same data",
                advice="name it once; to train on it more often, give it a weight",
                reason=FailureReason.SPEC_INVALID,
            )


def _state(path: Path) -> list[tuple[str, int, int, int]]:
    """What changes when a file, or one in a folder, is written to."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    facts = [(str(each), each.stat()) for each in files]
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in facts]
