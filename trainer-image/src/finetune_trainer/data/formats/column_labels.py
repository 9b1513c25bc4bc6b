"""Names of numbered labels: the `datasets` library stores them in the metadata of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

METADATA = b"huggingface"


@dataclass(frozen=True, slots=True)
class LabelNames:
    """Column to the names of its numbers: 3 stands for names[3]."""

    names: Mapping[str, Sequence[str]]

    def put_into(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with names in the place of numbers, also inside lists. A number without a name stays; one below 0
        says that there is no label, as the `datasets` library has it."""
        for column, names in self.names.items():
            if column in row:
                row[column] = _named(row[column], names)
        return row


def label_names(schema: pa.Schema) -> LabelNames:
    """None where the file says nothing, or says it in a form that is not known."""
    try:
        features = json.loads((schema.metadata or {})[METADATA])["info"]["features"]
        found = {str(column): _names(feature) for column, feature in features.items()}
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return LabelNames({})
    return LabelNames({column: names for column, names in found.items() if names})


def _names(feature: Any) -> list[str]:
    """Of ClassLabel, or of a list of it."""
    if isinstance(feature, list):
        feature = {"feature": feature[0]}
    inner = feature.get("feature", feature)
    names = inner.get("names") if inner.get("_type") == "ClassLabel" else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(inner, names) for inner in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value < 0:
        return None
    return names[value] if value < len(names) else value
