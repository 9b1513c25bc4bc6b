"""How examples flow through Prepare, and where what looks on and what cleans is attached.

    file -> row -> cleaners `row` -> check -> normalise -> cleaners `example` -> tokens -> observers `read`
         -> spool on disk -> duplicates, split, lengths -> cut -> observers `kept` -> dataset/

Everything comes one example at a time, the files of the training data before the held-out ones, each in its order,
and nothing on the way holds them all: data may be larger than memory. So a part that is attached keeps figures,
samples of a fixed number, or at most a few dozen bytes an example; never the examples.

Cleaners act in their order, each on what the one before it left. They count what they change themselves, and the
numbers of lines stay those of the file. A text that a cleaner makes is checked as any other is (`special_token`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from finetune_trainer.data.problems import Fault, FileName, Findings
from finetune_trainer.tasks.kind import Tokens

Side = Literal["train", "validation"]
"""Where an example ends up. Not its file: held-out examples may come from the training data."""


@dataclass(frozen=True, slots=True)
class Example:
    """One good example. `text` is its normalised JSON: equal examples have equal texts.

    `file` and `line` are where it stands. `tokens` are the columns that Train reads, in arrays of 4 bytes a number;
    `learned` is how many of them are trained on.
    """

    file: FileName
    line: int
    text: str
    tokens: Tokens
    learned: int
    parsed: Mapping[str, Any] | None = None

    @property
    def normal(self) -> Mapping[str, Any]:
        """What `text` says."""
        found: Mapping[str, Any] = json.loads(self.text) if self.parsed is None else self.parsed
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of `text`, 64 hexadecimal digits: the example's identity."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def length(self) -> int:
        """Tokens of what is read, or of what is to be written apart from it where that is longer (Seq2Seq)."""
        return max(len(self.tokens["input_ids"]), self.learned)


class Cleaner(Protocol):
    """Changes examples, or leaves them out, because the user asked for it."""

    def row(self, file: FileName, line: int, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row, in the task's names, before it is checked: the place to fill what is missing. None leaves it
        out."""

    def example(self, file: FileName, line: int, normal: dict[str, Any]) -> dict[str, Any] | None:
        """The checked example in the task's one form, before it is tokenised. None leaves it out."""


class Observer(Protocol):
    """Looks on and changes nothing."""

    def refused(self, file: FileName, line: int, row: Mapping[str, Any], faults: Sequence[Fault]) -> None:
        """A row that is not read any further, because of an error among these faults."""

    def read(self, example: Example) -> None:
        """A good example, uncut, as it stands in a file. Data that is refused may end before the last one."""

    def end_of_reading(self, findings: Findings) -> None:
        """All files are read, and nothing is refused yet: an error that is added here refuses the data."""

    def kept(self, side: Side, example: Example) -> None:
        """An example as it is stored, cut to the run's maxLength; once for each time that an epoch passes over it."""


class Onlooker:
    """An Observer that looks at nothing: for those that look at some of it."""

    def refused(self, file: FileName, line: int, row: Mapping[str, Any], faults: Sequence[Fault]) -> None: ...

    def read(self, example: Example) -> None: ...

    def end_of_reading(self, findings: Findings) -> None: ...

    def kept(self, side: Side, example: Example) -> None: ...


@dataclass(frozen=True, slots=True)
class Attached:
    """What is attached to one Prepare."""

    cleaners: Sequence[Cleaner] = ()
    observers: Sequence[Observer] = ()

    def clean_row(self, file: FileName, line: int, row: dict[str, Any]) -> dict[str, Any] | None:
        for cleaner in self.cleaners:
            cleaned = cleaner.row(file, line, row)
            if cleaned is None:
                return None
            row = cleaned
        return row

    def clean_example(self, file: FileName, line: int, normal: dict[str, Any]) -> dict[str, Any] | None:
        for cleaner in self.cleaners:
            cleaned = cleaner.example(file, line, normal)
            if cleaned is None:
                return None
            normal = cleaned
        return normal

    def refused(self, file: FileName, line: int, row: Mapping[str, Any], faults: Sequence[Fault]) -> None:
        for observer in self.observers:
            observer.refused(file, line, row, faults)

    def read(self, example: Example) -> None:
        for observer in self.observers:
            observer.read(example)

    def end_of_reading(self, findings: Findings) -> None:
        for observer in self.observers:
            observer.end_of_reading(findings)

    def kept(self, side: Side, example: Example) -> None:
        for observer in self.observers:
            observer.kept(side, example)
