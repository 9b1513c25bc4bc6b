"""Characters that nobody sees and that still are learned: they steer terminals, or turn the direction of the text."""

from __future__ import annotations

import re

# C0 and C1 without tab and line ends, delete, the marks that turn the direction, and the byte order mark.
CONTROL = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff"
ANY = re.compile(f"[{CONTROL}]")
# In JSON, where the first 32 are escapes: \u0000 to \u001f, \b and \f. An escaped backslash before it is none.
IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\(?:u00[01][0-9a-f]|[bf])|[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")


def stripped(text: str, *, keep_places: bool = False) -> str:
    """The text without them. `keep_places`: a blank for each, so that what counts characters stays right."""
    return ANY.sub(" " if keep_places else "", text)
