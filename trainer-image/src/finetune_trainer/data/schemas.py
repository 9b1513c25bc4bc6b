"""What a model wrote against a JSON schema: arguments of tool calls, and answers that shall be JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]
from jsonschema import SchemaError, ValidationError  # type: ignore[import-untyped]
from jsonschema.validators import Draft202012Validator, extend, validator_for  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import Unresolvable

MATCH_SECONDS = 0.2  # of one pattern on one text


class SchemaUnusableError(ValueError):
    """The schema is not one, so nothing can be said of the arguments."""


def require_schema(schema: Mapping[str, Any]) -> None:
    """Raise SchemaUnusableError when this is no JSON schema."""
    _validator(json.dumps(schema))


def broken_rule(schema: Mapping[str, Any], arguments: Any) -> str | None:
    """The keyword of the schema that the arguments break first, such as `required`; None when they fit.

    Raises SchemaUnusableError, also when the schema refers to what is not in it: nothing is fetched.
    """
    try:
        error = next(_validator(json.dumps(schema)).iter_errors(arguments), None)
    except (Unresolvable, RecursionError, re.error, regex.error) as broken:
        raise SchemaUnusableError(type(broken).__name__) from broken
    return None if error is None else str(error.validator)


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    """Of the schema as JSON text: the same tools stand on every line."""
    found = json.loads(schema)
    kind = validator_for(found, default=Draft202012Validator)
    try:
        kind.check_schema(found)
    except (SchemaError, RecursionError) as error:
        raise SchemaUnusableError("not a JSON schema") from error
    return extend(kind, {"pattern": _pattern})(found, registry=Registry())


def _pattern(_: Any, pattern: str, text: Any, __: Any) -> Iterator[ValidationError]:
    """The keyword as the library has it, but for an end: a model may write what a pattern backtracks over for hours."""
    if not isinstance(text, str):
        return
    try:
        found = regex.search(pattern, text, timeout=MATCH_SECONDS)
    except TimeoutError:
        found = None
    if not found:
        yield ValidationError("does not match the pattern")
