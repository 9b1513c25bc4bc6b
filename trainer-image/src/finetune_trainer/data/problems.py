"""What is wrong with a dataset: every finding with its file and line, grouped for people.

No finding carries text of the dataset; a key or a role is named only when it is a plain short word.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.status import Problem

MAX_LINES = 20  # line numbers kept in the status
MAX_LISTED = 10_000  # line numbers of a kind that the report on the volume lists; all are counted
MAX_MESSAGE = 512  # characters of a status message
MAX_PROBLEMS = 10  # kinds of problem kept in the status

Severity = Literal["error", "warning"]
FileName = str
"""`train`, `validation`, or, of several training files, `train.files[1]`: as people find it in the spec."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in one example. `where` is a path such as messages[2].weight."""

    check: str
    message: str
    where: str = ""
    severity: Severity = "error"


@dataclass(slots=True)
class Finding:
    """One kind of problem in one file. `count` is of all lines that have it, `lines` are the first MAX_LISTED."""

    fault: Fault
    file: FileName
    lines: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    unit: str = "line"  # what the numbers in `lines` count
    count: int = 0
    _last: int | None = None

    def add(self, line: int, where: str) -> None:
        """Count the line once."""
        if line == self._last:
            return
        self._last = line
        self.count += 1
        if len(self.lines) < MAX_LISTED:
            at = bisect(self.lines, line)  # what only the tokens show is found a batch later than what the row shows
            self.lines.insert(at, line)
            self.places.insert(at, where)

    @property
    def message(self) -> str:
        first = f" (first: {self.unit} {self.lines[0]}, {self.places[0]})" if self.lines and self.places[0] else ""
        return self.fault.message + first


class EncodingError(ValueError):
    """The example cannot become tokens. `check` names the kind of fault; the text has no text of the dataset."""

    def __init__(self, check: str, message: str, where: str = "") -> None:
        super().__init__(message)
        self.check = check
        self.message = message
        self.where = where


class Findings:
    """Collects faults. An example counts once for each kind of problem."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], Finding] = {}
        self._units: dict[str, str] = {}
        self._keys: dict[str, tuple[str, ...]] = {}
        self._names: dict[str, str] = {}

    def count_in(self, file: FileName, unit: str) -> None:
        """Say what the file's numbers count, where that is not lines: `row`, `item`. Before anything is added."""
        self._units[file] = unit

    def unit(self, file: FileName) -> str:
        return self._units.get(file, "line")

    def note_name(self, file: FileName, name: str) -> None:
        """Remember what the user calls the file: its own name, or its key in a ConfigMap."""
        self._names[file] = name

    def name(self, file: FileName) -> str:
        return self._names.get(file, "")

    def note_keys(self, file: FileName, keys: Iterable[str]) -> None:
        """Remember what the data calls its columns, to name them where one is missing."""
        self._keys[file] = tuple(keys)

    def keys(self, file: FileName) -> tuple[str, ...]:
        return self._keys.get(file, ())

    def add(self, file: FileName, line: int, faults: Iterable[Fault]) -> bool:
        """Record the faults of one line (0: the file as a whole); return whether one of them is an error."""
        refused = False
        for fault in faults:
            finding = self._kinds.setdefault((file, fault.check), Finding(fault, file, unit=self.unit(file)))
            finding.add(line, fault.where)
            refused |= fault.severity == "error"
        return refused

    def find(self, file: FileName, check: str) -> Finding | None:
        """One kind of problem of one file, where there is such."""
        return self._kinds.get((file, check))

    def sorted(self) -> list[Finding]:
        """Errors before warnings, frequent before rare."""
        return sorted(self._kinds.values(), key=lambda f: (f.fault.severity != "error", -f.count, f.fault.check))

    def errors(self) -> list[Finding]:
        return [finding for finding in self.sorted() if finding.fault.severity == "error"]

    def counts(self) -> Counter[str]:
        return Counter({f"{f.file}:{f.fault.check}": f.count for f in self._kinds.values()})

    def for_status(self) -> list[Problem]:
        """The worst kinds, cut to what the status takes."""
        return [
            Problem(
                check=finding.fault.check,
                count=finding.count,
                lines=[line for line in finding.lines if line][:MAX_LINES],
                file=finding.file,
                message=f"{finding.fault.severity}: {finding.message}"[:MAX_MESSAGE],
            )
            for finding in self.sorted()[:MAX_PROBLEMS]
        ]

    def for_report(self) -> list[dict[str, Any]]:
        """All kinds, each with its first MAX_LISTED lines."""
        return [
            {
                "check": finding.fault.check,
                "severity": finding.fault.severity,
                "file": finding.file,
                "count": finding.count,
                "message": finding.fault.message,
                "lines": [
                    {"line": line, **({"where": where} if where else {})}
                    for line, where in zip(finding.lines, finding.places, strict=True)
                ],
            }
            for finding in self.sorted()
        ]


def line_list(lines: Iterable[int], limit: int = 10, unit: str = "line", count: int = 0) -> str:
    """`line 3`, `lines 3, 7 and 9`, `lines 3, 7, 9 and 41 more`; empty for the file as a whole. `count`: how many
    there are, where `lines` has only the first of them."""
    numbers = [line for line in lines if line]
    if not numbers:
        return ""
    if len(numbers) == 1:
        return f"{unit} {numbers[0]}"
    total = max(count, len(numbers))
    if total > limit:
        return f"{unit}s {', '.join(map(str, numbers[:limit]))} and {total - limit} more"
    return f"{unit}s {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def plain_word(value: object) -> str:
    """The value in quotes when it is a short plain word, which cannot be private text; otherwise what it is."""
    if isinstance(value, str):
        return f"'{value}'" if re.fullmatch(r"[A-Za-z_][\w.-]{0,31}", value, re.ASCII) else "another text"
    return json_type(value)


def plain_words(values: Iterable[object], limit: int = 20) -> str:
    """Names for people: those that are plain words, and how many others there are."""
    all_names = list(values)
    plain = [word for word in map(plain_word, all_names) if word.startswith("'")][:limit]
    others = len(all_names) - len(plain)
    more = [f"{others} other{'s' if others > 1 else ''}"] if others else []
    return " and ".join([", ".join(plain), *more] if plain else more)


def json_type(value: object) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
