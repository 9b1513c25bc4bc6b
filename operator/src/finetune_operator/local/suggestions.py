"""What was probably meant: a word among known ones, a file among those that are there."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

ENOUGH = 0.6  # likeness from 0 to 1; difflib's own choice, too


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that is most like this one, however both are written; None when none is like it."""
    plain = {name.lower().replace("_", ""): name for name in known}
    found = difflib.get_close_matches(word.lower().replace("_", ""), plain, n=1, cutoff=ENOUGH)
    return plain[found[0]] if found else None


def meant(word: str, known: Sequence[str]) -> str:
    """The end of a message: the nearest word, or all of them; empty when nothing is known."""
    near = nearest(word, known)
    if near is not None:
        return f"; did you mean {near}?"
    return f"; known here: {', '.join(known)}" if known else ""


def nearest_path(file: str) -> str | None:
    """The path that is there and most like this one, folder by folder; None when a step has nothing like it."""
    path = Path(file)
    here = Path(path.anchor or ".")
    for step in path.relative_to(path.anchor).parts:
        found = step if (here / step).exists() else _nearest_entry(here, step)
        if found is None:
            return None
        here /= found
    return str(here)


def _nearest_entry(folder: Path, name: str) -> str | None:
    """By the name without its ending, which many files share; of equal ones the one whose ending is nearest."""
    if not folder.is_dir():
        return None
    entries = sorted((entry.name for entry in folder.iterdir()), key=lambda entry: _likeness(entry, name))
    stems = {Path(entry).stem: entry for entry in entries}
    near = nearest(Path(name).stem, list(stems))
    return None if near is None else stems[near]


def _likeness(entry: str, name: str) -> float:
    """Of the endings, from 0 to 1."""
    return difflib.SequenceMatcher(None, Path(entry).suffix, Path(name).suffix).ratio()
