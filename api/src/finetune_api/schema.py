"""pydantic's JSON schema as a Kubernetes structural schema.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
What differs: no `$ref`, no `null`, no `title`, `const` or `additionalProperties: false`, a type on everything but
int-or-string, and defaults that hold only what the fields inside do not default to by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

KEPT = {
    *("description", "type", "format", "enum", "pattern", "required"),
    *("minLength", "maxLength", "minItems", "maxItems", "maxProperties"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
    "x-kubernetes-validations",
}
# What pydantic says and a structural schema does not: said otherwise, or handled by hand below.
DROPPED = frozenset({"title", "default", "properties", "items", "additionalProperties", "const"})
ORDER = ("description", "type", "default", "enum", "properties", "required")


class SchemaError(TypeError):
    """A type uses something that a structural schema cannot say. Change the type, or teach this module."""


def structural_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a model. Raises SchemaError for what cannot be said."""
    whole = model.model_json_schema(by_alias=True)
    return _convert(whole, whole.get("$defs", {}), model.__name__)


def _convert(node: Mapping[str, Any], definitions: Mapping[str, Schema], path: str) -> Schema:
    plain = _int_or_string(_resolved(node, definitions, path), path)
    if plain.get("x-kubernetes-int-or-string"):
        plain.pop("type", None)
    elif "type" not in plain:
        raise SchemaError(f"{path}: has no type; a structural schema needs one")
    unknown = plain.keys() - KEPT - DROPPED - {"$defs"}
    if unknown:
        raise SchemaError(f"{path}: {', '.join(sorted(unknown))} cannot be said in a structural schema")
    result = {key: value for key, value in plain.items() if key in KEPT}
    if "const" in plain:
        result["enum"] = [plain["const"]]
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    _convert_children(plain, definitions, path, result)
    if plain.get("default") is not None:
        result["default"] = _pruned(plain["default"], result)
    return {key: result[key] for key in (*ORDER, *sorted(result.keys() - set(ORDER))) if key in result}


def _convert_children(plain: Schema, definitions: Mapping[str, Schema], path: str, result: Schema) -> None:
    if "properties" in plain:
        result["properties"] = {
            name: _convert(child, definitions, f"{path}.{name}") for name, child in plain["properties"].items()
        }
    if "items" in plain:
        result["items"] = _convert(plain["items"], definitions, f"{path}[]")
    if isinstance(plain.get("additionalProperties"), dict):
        result["additionalProperties"] = _convert(plain["additionalProperties"], definitions, f"{path}.*")


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Schema], path: str) -> Schema:
    """The node with its reference and its `| None` folded in; what stands beside them wins."""
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        beside = {key: value for key, value in node.items() if key != "$ref"}
        return _resolved(_merged(target, beside), definitions, path)
    choices = node.get("anyOf", ())
    present = [choice for choice in choices if choice.get("type") != "null"]
    if len(present) == len(choices) or len(present) != 1:
        return dict(node)
    beside = {key: value for key, value in node.items() if key != "anyOf"}
    return _resolved(_merged(present[0], beside), definitions, path)


def _merged(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> Schema:
    rules = [*inner.get("x-kubernetes-validations", ()), *outer.get("x-kubernetes-validations", ())]
    return {**inner, **outer, **({"x-kubernetes-validations": rules} if rules else {})}


def _int_or_string(node: Schema, path: str) -> Schema:
    """`int | str`: the API server knows int-or-string, and CEL the bounds of the number."""
    if "anyOf" not in node:
        return node
    plain = {key: value for key, value in node.items() if key != "anyOf"}
    if not plain.get("x-kubernetes-int-or-string"):
        raise SchemaError(f"{path}: one field, one type; int-or-string is the only exception")
    texts = [choice for choice in node["anyOf"] if choice.get("type") == "string"]
    return {**plain, **{key: value for text in texts for key, value in text.items() if key in KEPT}}


def _pruned(default: Any, schema: Schema) -> Any:
    """A default without what the fields inside default to anyway: `{}` lets them do it."""
    if isinstance(default, Mapping):
        properties: Mapping[str, Schema] = schema.get("properties", {})
        inside = {
            key: _pruned(value, properties.get(key, schema.get("additionalProperties", {})))
            for key, value in default.items()
            if value is not None
        }
        return {key: value for key, value in inside.items() if value != properties.get(key, {}).get("default")}
    if isinstance(default, Sequence) and not isinstance(default, str):
        return [_pruned(value, schema["items"]) for value in default]
    return default
