"""Which searches are worth making in a text. Most texts hold nothing, and to say so costs a tenth of searching them.

Whatever a search can find holds one of its marks: a part that every match has. A search whose marks are all absent
would find nothing, so it is not made. The tests draw matches from the patterns themselves and look for their marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What re.IGNORECASE takes for an ASCII letter besides the letter's capital (documented at re.IGNORECASE).
ALSO = {"\u0130": "i", "\u0131": "i", "\u017f": "s", "\u212a": "k"}


@dataclass(frozen=True, slots=True)
class Marks:
    """A text with something to find holds one of `exact`, or in small letters one of `small`, or matches `pattern`."""

    exact: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    pattern: str = ""


class FirstLook:
    """Takes the marks of all searches together: what several of them need is looked for once."""

    def __init__(self, searches: Sequence[Marks]) -> None:
        self._exact = [(mark, index) for index, marks in enumerate(searches) for mark in marks.exact]
        self._small = [(mark, index) for index, marks in enumerate(searches) for mark in marks.small]
        patterns: dict[str, list[int]] = {}
        for index, marks in enumerate(searches):
            if marks.pattern:
                patterns.setdefault(marks.pattern, []).append(index)
        self._patterns = [(re.compile(pattern), indices) for pattern, indices in patterns.items()]

    def worth(self, text: str) -> Iterable[int]:
        """Which of the searches to make, by their index, in order."""
        small = in_small_letters(text)
        found = {index for mark, index in self._exact if mark in text}
        found |= {index for mark, index in self._small if mark in small}
        for pattern, indices in self._patterns:
            if pattern.search(text):
                found.update(indices)
        return sorted(found)


def in_small_letters(text: str) -> str:
    """The text with each character that re.IGNORECASE takes for an ASCII letter as that letter in small."""
    if not text.isascii():
        for letter, small in ALSO.items():
            text = text.replace(letter, small)
    return text.lower()
