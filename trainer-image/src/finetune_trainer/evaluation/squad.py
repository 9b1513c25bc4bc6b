"""Exact match and F1 of answers, by the rules of SQuAD (Rajpurkar et al. 2016; 2.0: 2018).

Before they are compared, both answers lose case, punctuation, the articles a, an and the, and superfluous spaces.
Of several expected answers the best match counts. An expected "no answer" is matched only by no answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """The text as it is compared."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, expected: Sequence[str]) -> float:
    """1 when the answer equals one of the expected ones. No expected one: the question has no answer."""
    return float(any(normalise(answer) == normalise(one) for one in _real(expected)))


def answer_f1(answer: str, expected: Sequence[str]) -> float:
    """Greatest harmonic mean of the shares of common words, 0 to 1."""
    return max(_overlap(normalise(answer).split(), normalise(one).split()) for one in _real(expected))


def _real(expected: Sequence[str]) -> Sequence[str]:
    """As in SQuAD 2.0, an expected answer of which nothing is left (only an article, say) does not count."""
    return [one for one in expected if normalise(one)] or [""]


def _overlap(answer: Sequence[str], expected: Sequence[str]) -> float:
    if not answer or not expected:
        return float(answer == expected)
    common = (Counter(answer) & Counter(expected)).total()
    return 2 * common / (len(answer) + len(expected))
