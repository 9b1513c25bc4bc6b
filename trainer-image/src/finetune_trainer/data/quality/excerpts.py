"""What the report shows of an example with a problem: a few words of it, and never of one that holds a secret."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_trainer.data.flow import Example, Onlooker, Side
from finetune_trainer.data.problems import Fault, FileName, Finding, Findings
from finetune_trainer.data.quality import sensitive

SHOWN = 3  # examples of a kind of problem
LONGEST = 600  # characters of one
WITHHELD = "(not shown: the example holds something that looks secret or personal)"
STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Excerpts(Onlooker):
    """Keeps the beginnings of the first examples of each kind of problem, as (file, line) -> text."""

    def __init__(self, findings: Findings, *, withhold: bool) -> None:
        self._findings = findings
        self._withhold = withhold
        self._refused: Counter[tuple[FileName, str]] = Counter()
        self._wanted: dict[tuple[FileName, int], None] | None = None
        self._texts: dict[tuple[FileName, int, str], str] = {}
        self.also: set[tuple[FileName, int]] = set()  # wanted besides: the examples that others are nearly

    def refused(self, file: FileName, line: int, row: Mapping[str, Any], faults: Sequence[Fault]) -> None:
        for fault in faults:
            if self._refused[file, fault.check] < SHOWN:
                self._refused[file, fault.check] += 1
                self._texts[file, line, fault.where] = self._text(row, fault.where)

    def kept(self, side: Side, example: Example) -> None:
        if self._wanted is None:  # nothing is added to the findings any more but what is cut
            self._wanted = dict.fromkeys([*(place for place, _ in self._places()), *self.also])
        place = (example.file, example.line)
        if place not in self._wanted and not self._was_cut(example):
            return
        for where in {"", *(where for other, where in self._places() if other == place)}:
            self._texts.setdefault((example.file, example.line, where), self._text(example.normal, where))

    def _was_cut(self, example: Example) -> bool:
        """Whether it is one of the first that was cut just now."""
        finding = self._findings.find(example.file, "truncated")
        return finding is not None and example.line in finding.lines[:SHOWN]

    def of(self, file: FileName, line: int, where: str = "") -> str:
        """The words of the example, at the place where that is known; empty when nothing was kept of it."""
        return self._texts.get((file, line, where)) or self._texts.get((file, line, ""), "")

    def _places(self) -> Iterator[tuple[tuple[FileName, int], str]]:
        for finding in self._findings.sorted():
            for line, where in first_places(finding):
                yield (finding.file, line), where

    def _text(self, row: Mapping[str, Any], where: str) -> str:
        whole = json.dumps(row, ensure_ascii=False, default=str)
        if self._withhold and any(True for _ in sensitive.found_in(whole)):
            return WITHHELD
        found = at(row, where)
        text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str)
        # A lone surrogate can be in a row that is refused for it, and in no file.
        return text[:LONGEST].encode("utf-8", "replace").decode() + ("…" if len(text) > LONGEST else "")


def first_places(finding: Finding) -> list[tuple[int, str]]:
    """(line, where) of the first examples of a finding; none where it is about the file as a whole."""
    return [(line, where) for line, where in zip(finding.lines, finding.places, strict=True) if line][:SHOWN]


def at(row: Any, where: str) -> Any:
    """What stands at messages[2].content; the row itself when nothing does."""
    value = row
    for key, index in STEP.findall(where):
        try:
            value = value[int(index)] if index else value[key]
        except (KeyError, IndexError, TypeError):
            return row
    return value
