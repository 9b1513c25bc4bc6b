"""`dataset.cleaning`, the part that looks at one row at a time: fill, missingValues, controlCharacters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.cleaning import Cleaning, ControlCharacters, MissingValues
from finetune_api.tasks import Task
from finetune_trainer.data.problems import FileName
from finetune_trainer.data.quality.characters import stripped
from finetune_trainer.data.texts import with_texts

# What an example of the task needs, in each of its forms.
NEEDED: Mapping[Task, tuple[tuple[str, ...], ...]] = {
    Task.CHAT: (("messages",),),
    Task.COMPLETION: (("prompt", "completion"), ("text",)),
    Task.PREFERENCE: (("prompt", "chosen", "rejected"), ("input", "preferred_output", "non_preferred_output")),
    Task.CLASSIFICATION: (("text", "label"),),
    Task.TOKEN_CLASSIFICATION: (("tokens", "tags"), ("text", "spans")),
    Task.SEQ2SEQ: (("source", "target"),),
    Task.QUESTION_ANSWERING: (("question", "context"),),
}
EMPTY_LISTS = frozenset({"label", "spans"})  # empty they say something: that no label applies, that nothing is named
PLACED = ("spans", "answers")  # they count characters of another text of the row


class RowCleaner:
    """A Cleaner of rows. `counts` are the rows that each step changed or left out, by the step's name in the spec."""

    def __init__(self, task: Task, cleaning: Cleaning) -> None:
        self._task = task
        self._cleaning = cleaning
        self._fill: Mapping[str, str] = cleaning.fill.model_dump(exclude_none=True) if cleaning.fill else {}
        self.rows = 0
        self.counts: Counter[str] = Counter()

    def row(self, file: FileName, line: int, row: dict[str, Any]) -> dict[str, Any] | None:
        self.rows += 1
        cleaned = self._filled(row)
        if self._cleaning.missing_values is MissingValues.DROP and lacks(self._task, cleaned):
            self.counts["missingValues"] += 1
            return None
        return self._stripped(cleaned) if self._cleaning.control_characters is ControlCharacters.STRIP else cleaned

    def example(self, file: FileName, line: int, normal: dict[str, Any]) -> dict[str, Any] | None:
        return normal

    def steps(self) -> Iterator[tuple[str, int]]:
        """(step, rows) of each step that was asked for."""
        if self._fill:
            yield "fill", self.counts["fill"]
        if self._cleaning.missing_values is MissingValues.DROP:
            yield "missingValues", self.counts["missingValues"]
        if self._cleaning.control_characters is ControlCharacters.STRIP:
            yield "controlCharacters", self.counts["controlCharacters"]

    def _filled(self, row: dict[str, Any]) -> dict[str, Any]:
        missing = {key: text for key, text in self._fill.items() if is_blank(row.get(key))}
        if not missing or (self._task is Task.COMPLETION and _is_plain(row)):
            return row
        self.counts["fill"] += 1
        return {**row, **missing}

    def _stripped(self, row: dict[str, Any]) -> dict[str, Any]:
        keep = any(row.get(key) for key in PLACED)
        clean: dict[str, Any] = with_texts(row, lambda text: stripped(text, keep_places=keep))
        if clean == row:
            return row
        self.counts["controlCharacters"] += 1
        return clean


def lacks(task: Task, row: Mapping[str, Any]) -> bool:
    """Whether a value that the task needs is absent, null or blank."""
    form = max(NEEDED[task], key=lambda keys: sum(key in row for key in keys))
    return any(_is_missing(row, key) for key in form) or (task is Task.CHAT and _has_empty_turn(row["messages"]))


def is_blank(value: Any) -> bool:
    """Nothing, or a text without anything that can be seen."""
    return value is None or (isinstance(value, str) and not value.strip())


def _is_missing(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key)
    if isinstance(value, str):
        return key != "prompt" and is_blank(value)  # what is learned may begin without anything before it
    return value is None or (value == [] and key not in EMPTY_LISTS)


def _has_empty_turn(messages: Any) -> bool:
    """A user or an assistant that says nothing, and calls nothing."""
    turns = [each for each in messages if isinstance(each, Mapping)] if isinstance(messages, list) else []
    return any(
        each.get("role") in ("user", "assistant") and is_blank(each.get("content")) and not each.get("tool_calls")
        for each in turns
    )


def _is_plain(row: Mapping[str, Any]) -> bool:
    """Completion's form that has neither prompt nor completion."""
    return "text" in row and "prompt" not in row and "completion" not in row
