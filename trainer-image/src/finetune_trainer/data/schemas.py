"""What a model wrote against a JSON schema: arguments of tool calls, and answers that shall be JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]
from jsonschema import FormatChecker, SchemaError, ValidationError  # type: ignore[import-untyped]
from jsonschema.validators import Draft202012Validator, extend, validator_for  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import Unresolvable

MATCH_SECONDS = 0.2  # of one pattern on one text
PATTERNS = FormatChecker(formats=())  # of a schema's own texts only what is said to be a pattern is looked at
PATTERNS.checks("regex", raises=regex.error)(lambda text: not isinstance(text, str) or bool(regex.compile(text)))


class SchemaUnusableError(ValueError):
    """The schema is not one, so nothing can be said of the arguments."""


def require_schema(schema: Mapping[str, Any]) -> None:
    """Raise SchemaUnusableError when this is no JSON schema."""
    _validator(json.dumps(schema))


def broken_rule(schema: Mapping[str, Any], arguments: Any) -> str | None:
    """The keyword of the schema that the arguments break first, such as `required`; None when they fit.

    Raises SchemaUnusableError, also when the schema refers to what is not in it (nothing is fetched), and when a
    pattern for names does not come to an end on one of theirs.
    """
    try:
        error = next(_validator(json.dumps(schema)).iter_errors(arguments), None)
    except (Unresolvable, RecursionError) as broken:
        raise SchemaUnusableError(type(broken).__name__) from broken
    return None if error is None else str(error.validator or "false")  # a schema that is `false` allows nothing


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    """Of the schema as JSON text: the same tools stand on every line."""
    found = json.loads(schema)
    kind = validator_for(found, default=Draft202012Validator)
    try:
        kind.check_schema(found, format_checker=PATTERNS)
    except (SchemaError, RecursionError) as error:
        raise SchemaUnusableError("not a JSON schema") from error
    if "unevaluatedProperties" in schema and "patternProperties" in schema:
        raise SchemaUnusableError("patternProperties beside unevaluatedProperties: write additionalProperties")
    # A part that names its dialect again, as the whole does when a part refers to it, would get the library's keywords.
    found = {key: value for key, value in found.items() if key != "$schema"} if isinstance(found, dict) else found
    if '"$schema": "' in json.dumps(found):
        raise SchemaUnusableError("$schema within a part: write it once, at the beginning")
    return extend(kind, KEYWORDS)(found, registry=Registry())


# The library's own keywords search with `re`, which knows no time limit: a model may write what a pattern backtracks
# over for hours. So does unevaluatedProperties, which is refused beside patterns.


def _pattern(_: Any, pattern: str, text: Any, __: Any) -> Iterator[ValidationError]:
    if not isinstance(text, str):
        return
    try:
        found = regex.search(pattern, text, timeout=MATCH_SECONDS)
    except TimeoutError:
        found = None
    if not found:
        yield ValidationError("does not match the pattern")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], value: Any, _: Any) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    for pattern, inner in patterns.items():
        for name in value:
            if _names(pattern, name):
                yield from validator.descend(value[name], inner, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, inner: Any, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name in value:
        if name in known or any(_names(pattern, name) for pattern in patterns):
            continue
        if inner is False:
            yield ValidationError("a name is not allowed")
        else:
            yield from validator.descend(value[name], inner, path=name)


def _names(pattern: str, name: str) -> bool:
    try:
        return regex.search(pattern, name, timeout=MATCH_SECONDS) is not None
    except TimeoutError as error:
        text = f"a pattern of patternProperties did not come to an end within {MATCH_SECONDS} seconds"
        raise SchemaUnusableError(text) from error


KEYWORDS = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}
