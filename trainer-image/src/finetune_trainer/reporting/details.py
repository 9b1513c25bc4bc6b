"""What a task tells more of the tuned model than its metrics, as tables: figures of each label, what was taken for
what, questions with and without an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_LABELS = 100  # lines of a table; the rest is in report.json
MOST_CONFUSED = 25  # labels of a table of all with all, which must fit into a page


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` begin with their name. `diagonal`: all is compared with all, so the cells on it are right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    diagonal: bool = False


def tables(details: Mapping[str, Any]) -> list[Table]:
    """`details` are those of `Measured`."""
    labels: Mapping[str, Mapping[str, float]] = details.get("labels", {})
    return [*_labels(labels), *_confusion(list(labels), details.get("confusion", [])), *_answers(details)]


def _labels(labels: Mapping[str, Mapping[str, float]]) -> Iterator[Table]:
    if not labels:
        return
    shown = list(labels.items())[:MOST_LABELS]
    left = f"; the first {MOST_LABELS} of {len(labels)}" if len(labels) > len(shown) else ""
    yield Table(
        f"Of each label{left}. Precision: how often it is right to say it; recall: how many of its examples are found",
        ("Examples", "Precision", "Recall", "F1"),
        [
            (label, (f"{of['examples']:,}", *(f"{of[name]:.1%}" for name in ("precision", "recall", "f1"))))
            for label, of in shown
        ],
    )


def _confusion(labels: Sequence[str], counts: Sequence[Sequence[Any]]) -> Iterator[Table]:
    """Not where an example has several labels: each then has a table of its own, which precision and recall sum up."""
    if not counts or len(counts) > MOST_CONFUSED or any(isinstance(each, list) for row in counts for each in row):
        return
    yield Table(
        "What was taken for what: a line is what the data says, a column what the model said",
        labels,
        [(label, [f"{count:,}" for count in row]) for label, row in zip(labels, counts, strict=True)],
        diagonal=True,
    )


def _answers(details: Mapping[str, Any]) -> Iterator[Table]:
    """Of extractive question answering."""
    words = {"answerable": "with an answer in the text", "unanswerable": "without"}
    found = {word: details[name] for name, word in words.items() if name in details}
    if found:
        yield Table(
            "Questions",
            ("Examples", "Exactly the answer", "Words of the answer"),
            [
                (word, (f"{of['examples']:,}", f"{of['exactMatch']:.1%}", f"{of['answerF1']:.1%}"))
                for word, of in found.items()
            ],
        )
