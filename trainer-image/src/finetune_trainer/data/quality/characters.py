"""Characters that nobody sees and that still are learned: they steer terminals, or turn the direction of the text."""

from __future__ import annotations

import re

# C0 and C1 without tab and line ends, delete, the marks that turn the direction, and the byte order mark.
CONTROL = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff"
ANY = re.compile(f"[{CONTROL}]")
# In JSON the first 32 are escapes, \u0000 to \u001f, \b and \f; an escaped backslash before one makes it none.
ESCAPES = ("\\u00", "\\b", "\\f")
ESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\\(?:u00[01][0-9a-f]|[bf])")
AS_IT_IS = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")


def are_in_json(text: str) -> bool:
    """Whether the JSON text, whose other characters are not escaped, holds one."""
    escaped = any(escape in text for escape in ESCAPES) and ESCAPED.search(text) is not None
    return escaped or AS_IT_IS.search(text) is not None


def stripped(text: str, *, keep_places: bool = False) -> str:
    """The text without them. `keep_places`: a blank for each, so that what counts characters stays right."""
    return ANY.sub(" " if keep_places else "", text)
