"""The base of every API type: camelCase outside, snake_case inside, nothing unknown accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Named(StrEnum):
    """An enum whose values are the PascalCase words of the API."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule (`x-kubernetes-validations`) of the object or field it stands on."""

    rule: str
    message: str


class ApiModel(BaseModel):
    """Base of specification types. `rules` become the CEL rules of the generated schema."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    rules: ClassVar[Sequence[Rule]] = ()

    def to_wire(self) -> dict[str, Any]:
        """The object as Kubernetes sees it: camelCase, JSON types, nothing that is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(ApiModel):
    """Base of status types: what an older or newer version wrote beside our fields is ignored, not refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
