"""Arguments of tool calls against the JSON schema of the tool."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jsonschema import SchemaError  # type: ignore[import-untyped]
from jsonschema.validators import Draft202012Validator, validator_for  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import Unresolvable


class SchemaUnusableError(ValueError):
    """The schema is not one, so nothing can be said of the arguments."""


def require_schema(schema: Mapping[str, Any]) -> None:
    """Raise SchemaUnusableError when this is no JSON schema."""
    _validator(json.dumps(schema))


def broken_rule(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """The keyword of the schema that the arguments break first, such as `required`; None when they fit.

    Raises SchemaUnusableError, also when the schema refers to what is not in it: nothing is fetched.
    """
    try:
        error = next(_validator(json.dumps(schema)).iter_errors(arguments), None)
    except (Unresolvable, RecursionError, re.error) as broken:
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
    return kind(found, registry=Registry())
