"""What looks on while the examples are read: each of these is an Observer of `data/flow.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from finetune_api.cleaning import SensitiveData
from finetune_trainer.data.flow import Example, Onlooker
from finetune_trainer.data.problems import Fault, Findings, Severity
from finetune_trainer.data.quality import sensitive
from finetune_trainer.data.quality.characters import are_in_json
from finetune_trainer.data.quality.near_duplicates import Comparison, compared_text

CONTROLS = (
    "a text holds characters that nobody sees (control characters, or marks that turn its direction), and they are "
    "learned; dataset.cleaning.controlCharacters: Strip removes them"
)


class Looking(Onlooker):
    """Keys, personal data and control characters: one finding a kind, with its lines and without what was found."""

    def __init__(self, findings: Findings, sensitive_data: SensitiveData) -> None:
        self._findings = findings
        self._severity: Severity = "error" if sensitive_data is SensitiveData.REFUSE else "warning"
        self.looks = sensitive_data is not SensitiveData.IGNORE

    def read(self, example: Example) -> None:
        faults = [Fault("control_characters", CONTROLS, severity="warning")] if are_in_json(example.text) else []
        for kind in sensitive.found_in(example.text) if self.looks else ():
            where = sensitive.place(example.normal, kind)
            faults.append(Fault(kind.check, sensitive.message(kind), where, self._severity))
        self._findings.add(example.file, example.line, faults)


class Comparing(Onlooker):
    """Gives every example to the comparison: its index there is its position in the spool."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def read(self, example: Example) -> None:
        self._comparison.add(compared_text(example.normal))


class Counting(Onlooker):
    """Lengths, and who speaks how often: what the pictures of the report are made of."""

    def __init__(self) -> None:
        self.lengths: Counter[int] = Counter()  # of the training files' examples, in tokens, uncut
        self.roles: Counter[str] = Counter()

    def read(self, example: Example) -> None:
        if example.file != "validation":
            self.lengths[example.length] += 1
        self.roles.update(_roles(example.normal))


def _roles(normal: Mapping[str, object]) -> Iterator[str]:
    messages = normal.get("messages")
    for message in messages if isinstance(messages, list) else ():
        role = message.get("role") if isinstance(message, Mapping) else None
        if isinstance(role, str):
            yield role
