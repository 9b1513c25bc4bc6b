"""Texts of a dataset, made harmless and readable: escaped, cut, and what cannot be seen made visible."""

from __future__ import annotations

import re
import unicodedata

from markupsafe import Markup, escape

LONGEST_TEXT = 4000  # characters of one text on a page
# Joiners are a part of emoji and of Persian and Indic words, and neither hide nor turn anything.
SEEN = {"\n", "\t", "\u200c", "\u200d"}
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
PLAIN = re.compile(r"[\x20-\x7e\n\t]*")


def shown(text: object, limit: int = LONGEST_TEXT) -> Markup:
    """The text for a page, at most `limit` characters of it.

    Control characters, and those that turn the direction of the text or have no width, are shown by their number, so
    that what is seen is what is there. `bdi` keeps a text that runs from right to left from turning what is around it.
    """
    whole = str(text)
    kept = whole[:limit]
    body = escape(kept) if PLAIN.fullmatch(kept) else Markup("").join(map(_character, kept))
    left = len(whole) - len(kept)
    more = Markup(' <span class="cut">… and {:,} more characters</span>').format(left) if left else Markup("")
    return Markup('<bdi class="text">{}</bdi>{}').format(body, more)


def _character(character: str) -> Markup:
    if character in SEEN or unicodedata.category(character) not in HIDDEN:
        return escape(character)
    name = unicodedata.name(character, "control character")
    return Markup('<span class="code" title="{}">U+{:04X}</span>').format(name.capitalize(), ord(character))


def spaced(number: float) -> str:
    """1,234,567; fractions with three figures."""
    return f"{number:,}" if isinstance(number, int) else f"{number:,.3g}"


def percent(part: float, whole: float) -> str:
    """`12 %`; below 10 with one decimal; nothing of nothing is 0 %."""
    value = 100 * part / whole if whole else 0.0
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %"
