"""Whole entities out of tags of words, and how many are right, by seqeval's rules (those of CoNLL's conlleval)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OUTSIDE = "O"
AVERAGES = ("micro avg", "macro avg", "weighted avg")  # seqeval's, beside the labels


@dataclass(frozen=True, slots=True)
class Entity:
    """Words `first` to `last`, both included, are one entity."""

    label: str
    first: int
    last: int


def _seqeval() -> Any:
    """Imported when it is needed: with scikit-learn behind it it takes a second."""
    import seqeval.metrics  # type: ignore[import-untyped]

    return seqeval.metrics


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one text, in order. Lenient, as seqeval's default mode: an I- without a B- begins one too."""
    found = _seqeval().sequence_labeling.get_entities(list(tags))
    return [Entity(label, first, last) for label, first, last in found]


def entity_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Micro F1 of whole entities over all texts, 0 to 1: right is the same label on the very same words.
    0 when there is no entity on either side."""
    count = _seqeval().f1_score
    return float(count([list(tags) for tags in gold], [list(tags) for tags in predicted], zero_division=0))


def word_accuracy(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Share of the words with the right tag, 0 to 1."""
    pairs = [(g, p) for one, other in zip(gold, predicted, strict=True) for g, p in zip(one, other, strict=True)]
    return sum(g == p for g, p in pairs) / max(1, len(pairs))


def by_label(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Precision, recall and F1 of each label's entities, 0 to 1, and how many there are (`examples`)."""
    if not any(entities(tags) for tags in [*gold, *predicted]):
        return {}
    report = _seqeval().classification_report(
        [list(tags) for tags in gold], [list(tags) for tags in predicted], output_dict=True, zero_division=0
    )
    return {
        label: {
            "precision": float(values["precision"]),
            "recall": float(values["recall"]),
            "f1": float(values["f1-score"]),
            "examples": int(values["support"]),
        }
        for label, values in report.items()
        if label not in AVERAGES
    }
