"""Examples that are nearly others: by MinHash over pairs of neighbouring words.

Two texts are as similar as the share of their word pairs that both have (Jaccard). SKETCH minima of random hashes,
by datasketch, estimate it within about 5 points (Broder 1997). From 0.8 on two texts are called near-duplicates, as
Lee et al. do (2022, *Deduplicating Training Data Makes Language Models Better*), who compare runs of 5 words in web
pages: an example of a few sentences has too few of those, so that one other word in twenty would hide it.

Not compared is what makes all examples alike: system messages, tools and contexts, and pairs that a third of the
first examples share, such as an instruction that stands in each prompt.

Memory is bounded: 256 bytes an example for the first MAX_COMPARED; what comes later is not compared, and the report
says so.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasketch import MinHash  # type: ignore[import-untyped]
from numpy.typing import NDArray

SIMILARITY = 0.8
SKETCH = 64  # minima of a text
BANDS = 10  # of 6 minima: of texts that are 80 % alike 95 in 100 agree in a band, of those 50 % alike 15
ROWS = 6
MAX_COMPARED = 400_000  # examples; 100 MB
LONGEST = 50_000  # characters of an example that are compared
SAMPLED = 1000  # first examples, by which is decided what all share
FEWEST_SAMPLED = 20  # below it nothing is common
COMMON = 1 / 3  # share of them that makes a pair common
CHUNK = 10_000  # candidates that are compared at once
# Words, and one character each of the scripts that do not part words: kana, Chinese, Hangul, Thai.
UNPARTED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
WORDS = re.compile(rf"[^\W{UNPARTED}]+|[{UNPARTED}]")
NOT_COMPARED = frozenset({"role", "weight", "name", "type", "id", "tool_call_id", "tools", "context", "label", "tags"})
# The same for texts that have nothing but ASCII, in a fifth of the time: what is no word becomes a blank.
BLANKS = bytes(ord(char) if WORDS.match(char) else ord(" ") for char in map(chr, range(128))).ljust(256)
# Two odd numbers, so that a b and b a differ and all 64 bits are taken, of which a sketch uses the upper 32.
FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two examples that are nearly the same: `index` comes after `first`, both counted from 0 as they were added."""

    index: int
    first: int
    similarity: float


class Comparison:
    """Takes the texts of all examples in their order, and then says which are nearly which."""

    def __init__(self, similarity: float = SIMILARITY) -> None:
        self._similarity = similarity
        # All hashes of a text come as one array: a list of numbers, made an array again, takes half of the time.
        self._minima = MinHash(num_perm=SKETCH, scheme="affine32", hashfunc=lambda hashes: hashes)
        self._sampled: list[Hashes] = []
        self._common: Hashes | None = None
        self._sketches = array("I")  # of all examples, SKETCH numbers each
        self.left_out = 0  # examples that came after the first MAX_COMPARED

    def __len__(self) -> int:
        """Examples that were taken."""
        return len(self._sampled) + len(self._sketches) // SKETCH

    def add(self, text: str) -> bool:
        """Take the next example; False when it came too late to be compared."""
        if len(self) >= MAX_COMPARED:
            self.left_out += 1
            return False
        pairs = word_pairs(text[:LONGEST])
        if self._common is not None:
            self._keep(pairs, self._common)
            return True
        self._sampled.append(pairs)
        if len(self._sampled) >= SAMPLED:
            self._settle()
        return True

    def pairs(self) -> list[Pair]:
        """Every example that is nearly an earlier one, with the first such one that was found; by their order."""
        self._settle()
        if len(self) < 2:
            return []
        sketches = np.frombuffer(self._sketches, np.uint32).reshape(-1, SKETCH)
        best: dict[int, Pair] = {}
        for later, earlier in _candidates(sketches):
            alike = (sketches[later] == sketches[earlier]).mean(axis=1)
            for at in np.flatnonzero(alike >= self._similarity):
                found = Pair(int(later[at]), int(earlier[at]), float(alike[at]))
                known = best.setdefault(found.index, found)
                if found.first < known.first:
                    best[found.index] = found
        return [best[index] for index in sorted(best)]

    def _settle(self) -> None:
        """From now on it is known what most examples share."""
        if self._common is not None:
            return
        self._common = _common(self._sampled)
        sampled, self._sampled = self._sampled, []
        for pairs in sampled:
            self._keep(pairs, self._common)

    def _keep(self, pairs: Hashes, common: Hashes) -> None:
        """The sketch of the pairs that are not common. Without any it is that of all of them, so that a text of nothing
        but what all share is like others of its kind."""
        own = pairs[~_among(pairs, common)]
        kept = own if len(own) else pairs
        self._minima.clear()
        self._minima.update_batch([kept >> np.uint64(32)])
        self._sketches.frombytes(self._minima.hashvalues.tobytes())


def compared_text(normal: Mapping[str, Any]) -> str:
    """What of a normalised example is compared: its texts, without system messages, tools, contexts and labels."""
    return "\n".join(_texts(normal))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if value.get("role") not in ("system", "developer"):
            for key, inner in value.items():
                if key not in NOT_COMPARED:
                    yield from _texts(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner)


def word_pairs(text: str) -> Hashes:
    """Hashes of the different pairs of neighbouring words, whatever their case and what stands between them, sorted. Of
    one word the word itself, of none the text."""
    words = _words(text.lower())
    hashes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    if len(hashes) < 2:
        return hashes * FIRST
    pairs = np.sort(hashes[:-1] * FIRST + hashes[1:] * SECOND)
    return pairs[np.concatenate(([True], pairs[1:] != pairs[:-1]))]


def _words(text: str) -> list[bytes]:
    """The words of the text; the text itself when it has none."""
    if text.isascii():
        words = text.encode().translate(BLANKS).split()
    else:
        words = "\n".join(WORDS.findall(text)).encode("utf-8", "replace").split()
    return words or [text.encode("utf-8", "replace")]


def _among(pairs: Hashes, common: Hashes) -> NDArray[np.bool_]:
    """Which of the pairs are common; both are sorted."""
    if not len(common):
        return np.zeros(len(pairs), np.bool_)
    places = np.minimum(np.searchsorted(common, pairs), len(common) - 1)
    among: NDArray[np.bool_] = common[places] == pairs
    return among


def _common(sampled: Sequence[Hashes]) -> Hashes:
    if len(sampled) < FEWEST_SAMPLED:
        return np.zeros(0, np.uint64)
    pairs, counts = np.unique(np.concatenate(sampled), return_counts=True)
    return pairs[counts >= COMMON * len(sampled)]


def _candidates(sketches: NDArray[np.uint32]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(later, earlier) in chunks: each example with the first that agrees with it in all minima of a band."""
    for band in range(BANDS):
        rows = np.ascontiguousarray(sketches[:, band * ROWS : (band + 1) * ROWS])
        _, first, group = np.unique(rows.view(f"V{rows.strides[0]}")[:, 0], return_index=True, return_inverse=True)
        earlier = first[group]
        later = np.flatnonzero(earlier != np.arange(len(sketches)))
        for start in range(0, len(later), CHUNK):
            part = later[start : start + CHUNK]
            yield part, earlier[part]
