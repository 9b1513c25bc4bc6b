"""The base of every API type: camelCase outside, snake_case inside, nothing unknown accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    Strict,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

RECORDED = "recorded"
"""Validation context of what some version of this product wrote: the rules of its time were other ones."""


class Named(StrEnum):
    """An enum whose values are the PascalCase words of the API."""


Int = Annotated[int, Strict()]
"""A whole number as the API server takes it: neither "5" nor true."""

Bool = Annotated[bool, Strict()]
"""true or false as the API server takes it: neither "yes" nor 1."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the object or field it stands on, told twice: to the API server and to a laptop.

    `rule` is CEL (`x-kubernetes-validations`), `holds` the same over the parsed value. The tests feed every bad
    manifest to both, so that they cannot drift apart.
    """

    rule: str
    message: str
    holds: Callable[[Any], bool]
    # The rule sees `oldSelf` as an optional. The API server by itself forgives a stored value that breaks a rule while
    # the value is unchanged; a rule over several parts of the spec must look into the old one to be as forgiving.
    old_self: bool = False
    # CEL: where it is true, the rule holds. Rules of an object that share one are asked together (joined_rules.py).
    unless: str = ""

    def to_cel(self) -> dict[str, Any]:
        """The half of the API server; `unless` is no part of it yet."""
        cel: dict[str, Any] = {"rule": self.rule, "message": self.message}
        more = {"optionalOldSelf": self.old_self, "unless": self.unless}
        return cel | {key: value for key, value in more.items() if value}


def check_rules(value: Any, rules: Sequence[Rule]) -> Any:
    """The value, when all rules hold; ValueError with the messages of those that do not."""
    broken = [rule.message for rule in rules if not rule.holds(value)]
    if broken:
        raise ValueError("; ".join(broken))
    return value


def asks_rules(info: ValidationInfo) -> bool:
    """Whether the rules are asked now: of what a user writes, not of what we have written."""
    return info.context != RECORDED


class ApiModel(BaseModel):
    """Base of specification types. `rules` become the CEL rules of the generated schema."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    rules: ClassVar[Sequence[Rule]] = ()

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        """`field:` with nothing behind it means the default, as on the API server."""
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data

    @model_validator(mode="after")
    def _rules_hold(self, info: ValidationInfo) -> Self:
        if asks_rules(info):
            check_rules(self, self.rules)
        return self

    @classmethod
    def from_record(cls, text: str | bytes) -> Self:
        """Read JSON that this or another version of the product wrote: fields that are not known here are ignored, and
        rules that came later are not asked. Raises ValueError when it still makes no sense."""
        return cls.model_validate_json(text, extra="ignore", context=RECORDED)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.rules:
            schema["x-kubernetes-validations"] = [rule.to_cel() for rule in cls.rules]
        return schema

    def to_wire(self) -> dict[str, Any]:
        """The object as Kubernetes sees it: camelCase, JSON types, nothing that is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(ApiModel):
    """Base of what we write ourselves, the status first of all, but reports and snapshots, too: what an older or newer
    version wrote beside our fields is ignored, not refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
