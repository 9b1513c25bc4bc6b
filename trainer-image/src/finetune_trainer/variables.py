"""Parts of the spec that a stage is told in a variable of its own: they are no part of a run, and run.json is older."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from finetune_api.base import ApiModel
from finetune_api.conditions import FailureReason
from finetune_trainer.errors import UserInputError

Part = TypeVar("Part", bound=ApiModel)


def read_part(environment: Mapping[str, str], variable: str, kind: type[Part], what: str, field: str) -> Part | None:
    """The part that the variable has as JSON; None where it is not set. `what` it is, and which `field` of the spec, is
    for the user: raises UserInputError (SpecInvalid) that names the variable."""
    text = environment.get(variable)
    if text is None:
        return None
    try:
        return kind.from_record(text)
    except ValueError as error:
        raise UserInputError(
            f"{variable} cannot be read as {what}: {error}",
            advice=f"write {field} as JSON, or leave the variable away",
            reason=FailureReason.SPEC_INVALID,
        ) from error
