"""How well labels are predicted: pure functions of the scores and the truth, counted by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune_api.tasks import Metric

HALF = 0.5  # probability from which one of several labels applies

Scores = NDArray[np.float64]  # of the model, before softmax or sigmoid: [examples, labels]
Truth = NDArray[np.int64]  # 1 where a label applies, else 0: [examples, labels]


def truth(labels: Sequence[Sequence[int]], count: int) -> Truth:
    """The numbers of the labels of each example as zeros and ones."""
    found = np.zeros((len(labels), count), np.int64)
    for row, numbers in zip(found, labels, strict=True):
        row[list(numbers)] = 1
    return found


def losses(scores: Scores, expected: Truth, *, multi_label: bool) -> NDArray[np.float64]:
    """Cross-entropy of each example in nats; of several labels the mean, as the trainer has it. Shape [examples]."""
    given, wanted = torch.from_numpy(scores), torch.from_numpy(expected)
    if multi_label:
        found = binary_cross_entropy_with_logits(given, wanted.double(), reduction="none").mean(dim=1)
    else:
        found = cross_entropy(given, wanted.argmax(dim=1), reduction="none")
    return np.asarray(found, np.float64)


def probabilities(scores: Scores, *, multi_label: bool) -> NDArray[np.float64]:
    """0 to 1. One label an example: a row adds up to 1. Several: each stands for itself."""
    given = torch.from_numpy(scores)
    return np.asarray(given.sigmoid() if multi_label else given.softmax(dim=1), np.float64)


def predicted(scores: Scores, *, multi_label: bool) -> Truth:
    """What the model says: the likeliest label, or all that are at least as likely as not."""
    if multi_label:
        return (scores >= 0).astype(np.int64)  # sigmoid(0) is one half
    return truth(scores.argmax(axis=1)[:, None].tolist(), scores.shape[1])


def _scikit_learn() -> Any:
    """Imported when it is needed: it takes a second, which Prepare and a starting server can do without."""
    import sklearn.metrics  # type: ignore[import-untyped]

    return sklearn.metrics


def metrics(scores: Scores, expected: Truth, *, multi_label: bool) -> dict[Metric, float]:
    """Accuracy (of several labels: all of them right) and F1 over the labels that were expected or predicted."""
    counted, said = _scikit_learn(), predicted(scores, multi_label=multi_label)
    seen = np.flatnonzero(expected.any(axis=0) | said.any(axis=0))
    one, two = (expected, said) if multi_label else (expected.argmax(axis=1), said.argmax(axis=1))

    def f1(average: str) -> float:
        if not len(seen):
            return 0.0  # several labels, none expected and none predicted: there is no F1
        return float(counted.f1_score(one, two, labels=seen, average=average, zero_division=0))

    return {
        Metric.ACCURACY: float(counted.accuracy_score(one, two)),
        Metric.MACRO_F1: f1("macro"),
        Metric.WEIGHTED_F1: f1("weighted"),
    }


def details(scores: Scores, expected: Truth, labels: Sequence[str], *, multi_label: bool) -> dict[str, Any]:
    """Per label and in which label's place: for the report. `confusion[i][j]`: label i was expected, j predicted; of
    several labels it is a table a label, [[right no, wrong yes], [wrong no, right yes]]."""
    counted, said = _scikit_learn(), predicted(scores, multi_label=multi_label)
    numbers = list(range(len(labels)))
    one, two = (expected, said) if multi_label else (expected.argmax(axis=1), said.argmax(axis=1))
    rows = zip(*counted.precision_recall_fscore_support(one, two, labels=numbers, zero_division=0), strict=True)
    if multi_label:
        table = counted.multilabel_confusion_matrix(one, two)
    else:
        table = counted.confusion_matrix(one, two, labels=numbers)
    return {
        "labels": {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "examples": int(n)}
            for label, (p, r, f, n) in zip(labels, rows, strict=True)
        },
        "confusion": table.tolist(),
    }
