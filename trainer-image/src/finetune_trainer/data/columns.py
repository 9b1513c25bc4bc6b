"""`dataset.columns`: names of the data become ours before a task looks at a row."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from finetune_api.dataset import Columns
from finetune_trainer.data.formats.form import refuse
from finetune_trainer.data.problems import FileName, plain_words

MAX_KNOWN = 200  # different keys that are remembered, to name them when one is missing
ABSENT = object()


class ColumnMapping:
    """Renames the keys of one file's rows, and knows which of the names no row had."""

    def __init__(self, columns: Columns | None) -> None:
        self._theirs: dict[str, str] = columns.model_dump(exclude_none=True) if columns else {}
        spec = columns.model_dump(exclude_none=True, by_alias=True) if columns else {}
        self._spelled = dict(zip(self._theirs, spec, strict=True))  # ours, as the spec spells it
        self._missing = set(self._theirs)
        self._known: dict[str, None] = {}

    def apply(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row in our names. A key that is called as ours, but is not the one that is mapped, is left out."""
        if not self._theirs:
            return row
        if len(self._known) < MAX_KNOWN:
            self._known.update(dict.fromkeys(row))
        found = {ours: value for ours, theirs in self._theirs.items() if (value := _get(row, theirs)) is not ABSENT}
        self._missing.difference_update(found)
        taken = {theirs if theirs in row else theirs.split(".")[0] for theirs in self._theirs.values()}
        rest = {key: value for key, value in row.items() if key not in taken and key not in self._theirs}
        return {**rest, **found}

    def refuse_undeclared(self, declared: Iterable[str], file: FileName) -> None:
        """Raise UserInputError when a file that declares its columns does not have one that is mapped."""
        names = list(declared)
        self._known.update(dict.fromkeys(names))
        for ours, theirs in self._theirs.items():
            if theirs not in names and theirs.split(".")[0] not in names:
                self._refuse(ours, file, "no column is called so")

    def refuse_unseen(self, file: FileName) -> None:
        """Raise UserInputError when no row had one of the mapped names. After the last row; without rows there is
        nothing to say."""
        for ours in self._theirs:
            if ours in self._missing and self._known:
                self._refuse(ours, file, "no example has it")

    def _refuse(self, ours: str, file: FileName, why: str) -> None:
        theirs, spelled = self._theirs[ours], self._spelled[ours]
        near = difflib.get_close_matches(theirs.lower(), [name.lower() for name in self._known], n=1, cutoff=0.5)
        nearest = next((name for name in self._known if near and name.lower() == near[0]), None)
        meant = f" (is {plain_words([nearest])} meant?)" if nearest and plain_words([nearest]).startswith("'") else ""
        likely = f" (columns: {{{spelled}: {nearest}}})" if meant else ""
        refuse(
            f"{file} data: dataset.columns says that `{spelled}` is called '{theirs}', and {why}{meant}; "
            f"the data has {plain_words(self._known)}",
            f"correct dataset.columns.{spelled}{likely}, or remove it if the data calls it `{ours}` already",
        )


def _get(row: Mapping[str, Any], name: str) -> Any:
    """The value under the name; `a.b` is also `b` in the object `a`. ABSENT when there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value
