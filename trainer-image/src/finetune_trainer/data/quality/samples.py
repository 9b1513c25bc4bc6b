"""A few examples as the model reads them: what is learned, what is only read, and what is cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from finetune_trainer.data.flow import Example, Onlooker, Side
from finetune_trainer.data.problems import Findings
from finetune_trainer.data.quality import sensitive
from finetune_trainer.masking import IGNORED
from finetune_trainer.tasks.kind import ExampleFormat

SHOWN = 3
LONGEST = 20_000  # tokens of an example that are shown
LEARNED_KEYS = ("label", "tags", "spans", "target", "answers", "chosen", "rejected")


class Samples(Onlooker):
    """The first training examples that may be shown, and among them, where there is one, one that is cut."""

    def __init__(self, findings: Findings, *, withhold: bool) -> None:
        self._findings = findings
        self._withhold = withhold
        self._whole: list[Example] = []
        self._cut: Example | None = None
        self.withheld = 0  # passed over because something in them looks secret or personal

    def kept(self, side: Side, example: Example) -> None:
        if side != "train" or (len(self._whole) >= SHOWN and self._cut):
            return
        cut = self._was_cut(example)
        if (self._cut if cut else len(self._whole) >= SHOWN) or example in self._whole:
            return
        if self._withhold and any(True for _ in sensitive.found_in(example.text)):
            self.withheld += 1
        elif cut:
            self._cut = example
        else:
            self._whole.append(example)

    def rendered(self, form: ExampleFormat, tokenizer: Any) -> list[dict[str, Any]]:
        """[{"file", "line", "pieces" | "example" and "read"}] for the report."""
        chosen = [*self._whole, self._cut] if self._cut else self._whole
        if len(chosen) > SHOWN:
            chosen = [*chosen[: SHOWN - 1], chosen[-1]]
        return [
            {"file": example.file, "line": example.line, **_as_read(example, form, tokenizer)} for example in chosen
        ]

    def _was_cut(self, example: Example) -> bool:
        """Whether it is the one that was cut just now."""
        finding = self._findings.find(example.file, "truncated")
        return finding is not None and finding.lines[-1] == example.line


def _as_read(example: Example, form: ExampleFormat, tokenizer: Any) -> dict[str, Any]:
    ids, labels = example.tokens["input_ids"], example.tokens.get("labels")
    if labels is None or not _are_tokens(ids, labels):
        return {"read": tokenizer.decode(ids[:LONGEST]), "example": dict(example.normal)}
    rest = form.encode(example.normal)["input_ids"][len(ids) :]
    shown = pieces(ids[:LONGEST], labels[:LONGEST], tokenizer)
    left = len(ids) - LONGEST
    more = [{"trained": False, "text": f" … and {left:,} more tokens"}] if left > 0 else []
    tail = [{"trained": False, "cut": True, "text": tokenizer.decode(rest[:LONGEST])}] if rest else []
    return {"pieces": [*shown, *more, *tail]}


def _are_tokens(ids: Sequence[int], labels: Sequence[int]) -> bool:
    """Whether the labels are the tokens themselves, as where text is generated."""
    return len(ids) == len(labels) and all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def pieces(input_ids: Sequence[int], labels: Sequence[int], tokenizer: Any) -> list[dict[str, Any]]:
    """Runs of tokens with the same fate: [{"trained": bool, "text": str}]."""
    runs = groupby(zip(input_ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    return [{"trained": trained, "text": tokenizer.decode([token for token, _ in run])} for trained, run in runs]


def learned(example: Mapping[str, Any]) -> dict[str, Any]:
    """What is learned of an example whose words are not."""
    return {key: example[key] for key in LEARNED_KEYS if key in example}
