"""From token ids to text, piece by piece: whole characters only, and nothing of a stop sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes, so more tokens than that without a whole character are not the start of one.
LONGEST_CHARACTER = 4
# Tokens before the answer that tell a tokenizer whether the answer starts with a space.
CONTEXT_TOKENS = 6


@dataclass(slots=True)
class Detokenizer:
    """Turns ids into text as they come.

    Decoding token by token breaks characters and loses spaces, so a window of ids is decoded with and without the
    new ones, and the difference is the new text. `context` are ids that came before and are not to be repeated.
    """

    decode: Callable[[list[int]], str]
    context: Sequence[int] = ()
    _ids: list[int] = field(init=False)
    _start: int = field(init=False, default=0)
    _read: int = field(init=False)

    def __post_init__(self) -> None:
        self._ids = list(self.context)[-CONTEXT_TOKENS:]
        self._read = len(self._ids)

    def push(self, token: int) -> str:
        """Return the text that is certain now; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._fresh()
        if text.endswith(REPLACEMENT) and len(self._ids) - self._read <= LONGEST_CHARACTER:
            return ""
        if text:
            self._start = self._read
        # A token without text, such as a control token, waits for nothing either.
        self._read = len(self._ids)
        return text

    def flush(self) -> str:
        """Return what was held back, without the bytes that never became a character."""
        text = self._fresh().rstrip(REPLACEMENT)
        self._start = self._read = len(self._ids)
        return text

    def _fresh(self) -> str:
        before = self.decode(self._ids[self._start : self._read])
        return self.decode(self._ids[self._start :])[len(before) :]


@dataclass(slots=True)
class StopScanner:
    """Passes text on until one of the stop sequences appears; holds back what could be the start of one."""

    stops: Sequence[str]
    hit: bool = False
    _held: str = ""

    def push(self, text: str) -> str:
        """Return the text that may be shown. After a hit that is nothing any more."""
        if self.hit:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.hit = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((overlap(self._held, stop) for stop in self.stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Return what was held back: the answer ended without the rest of a stop sequence."""
        shown, self._held = self._held, ""
        return shown


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` starts with, less than all of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
