"""Cells of a text table as values: JSON where a task takes a list or an object, null where nothing is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetune_api.tasks import Task
from finetune_trainer.data.formats.jsonl import parse_json
from finetune_trainer.data.problems import Fault

# Keys whose cell is JSON when it begins as a list or an object does; as texts they would be of no use to any task.
STRUCTURED = frozenset(
    {
        *("messages", "conversations", "tools", "tokens", "tags", "spans", "answers"),
        *("preferred_output", "non_preferred_output"),
    }
)
# Keys that hold a text as often as a list or an object: what begins like this is meant as such.
MESSAGES = re.compile(r"\[\s*\{")
PERHAPS_STRUCTURED = {
    "label": re.compile(r"""\[\s*(["'\d\]-]|(true|false)\b)"""),
    "input": re.compile(r"\{|\[\s*\{"),  # a conversation of Preference; Alpaca's is always a text
    **dict.fromkeys(("prompt", "chosen", "rejected"), MESSAGES),
}
OPTIONAL = STRUCTURED | {"text_pair", "label"}  # an empty cell says nothing; elsewhere it is an empty text
FLAGS = {"is_impossible", "parallel_tool_calls"}
TRUTH = {"true": True, "false": False, "": None}


def read_cells(row: Mapping[str, Any], task: Task) -> tuple[dict[str, Any], list[Fault]]:
    """The row with JSON cells parsed, and the faults of those that are broken. `row` is in our names. A prompt of
    Completion stays the text that it is, also one in JSON."""
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, cell in row.items():
        text = cell.strip() if isinstance(cell, str) else ""
        values[key] = cell
        if not isinstance(cell, str):
            continue
        if not text and key in OPTIONAL:
            values[key] = None
        elif key in FLAGS:
            values[key] = TRUTH.get(text.lower(), cell)
        elif key == "prompt" and task is Task.COMPLETION:
            continue
        elif _is_structured(key, text) and not (key == "input" and "instruction" in row):
            try:
                values[key] = parse_json(text)
            except (ValueError, RecursionError):
                faults.append(_broken(key, text))
    return values, faults


def _is_structured(key: str, text: str) -> bool:
    if key in STRUCTURED:
        return text.startswith(("[", "{"))
    return key in PERHAPS_STRUCTURED and PERHAPS_STRUCTURED[key].match(text) is not None


def _broken(key: str, text: str) -> Fault:
    python = "; it looks like Python's form, with single quotes: write it with json.dumps" if "'" in text[:3] else ""
    return Fault("cell_json", f'the cell `{key}` is not valid JSON{python}, for example ["a", "b"]', key)
