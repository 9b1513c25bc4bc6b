"""The forms of data files that are read, and what they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn

from finetune_trainer.data.problems import plain_word
from finetune_trainer.errors import UserInputError

MAX_ROW_BYTES = 16 * 2**20  # a longer row is a whole file without line ends, or not a training example

Numbered = Iterator[tuple[int, dict[str, Any]]]
"""(number from 1, row): the line, item or row of the file, as `Findings.count_in` says."""


class Form(StrEnum):
    """The values are what people are told."""

    JSON_LINES = "JSON Lines"
    JSON = "JSON"
    TABLE = "CSV"
    PARQUET = "Parquet"
    ARROW = "Arrow"


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that is about to be read. `columns` are those that it declares: of a table with a header, and of
    Parquet; None where every row has its own keys."""

    form: Form
    rows: Numbered
    columns: tuple[str, ...] | None = None


def refuse_repeated(names: Sequence[str], where: str, advice: str) -> None:
    """End the stage where a file declares a column twice: of each row only one of the values would be read."""
    twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if twice:
        refuse(f"{where} names a column twice: {plain_word(twice[0])}", f"give every column a name of its own{advice}")


def refuse(message: str, advice: str) -> NoReturn:
    """End the stage: the file as a whole cannot be read."""
    raise UserInputError(message, advice=advice)
