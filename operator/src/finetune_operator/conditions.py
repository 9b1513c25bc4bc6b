"""Conditions: derived anew in each pass, with the time of the last change kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from finetune_api.conditions import ConditionType
from finetune_api.status import MESSAGE_LENGTH, Condition

Truth = Literal["True", "False", "Unknown"]
Judgement = tuple[ConditionType, Truth, str, str]
"""type, status, reason, message"""


def merge(old: Sequence[Condition], new: Sequence[Judgement], now: str, generation: int) -> list[Condition]:
    """The judgements as conditions. `lastTransitionTime` moves only when the status changes."""
    before = {condition.type: condition for condition in old}
    return [_condition(before.get(judgement[0]), judgement, now, generation) for judgement in new]


def _condition(old: Condition | None, judgement: Judgement, now: str, generation: int) -> Condition:
    kind, status, reason, message = judgement
    kept = old is not None and old.status == status
    return Condition(
        type=kind,
        status=status,
        reason=reason[:64],
        message=shorten(message, MESSAGE_LENGTH),
        last_transition_time=old.last_transition_time if kept and old else now,
        observed_generation=generation,
    )


def find(conditions: Sequence[Condition], kind: ConditionType) -> Condition | None:
    """The condition of this type."""
    return next((condition for condition in conditions if condition.type == kind), None)


def is_true(conditions: Sequence[Condition], kind: ConditionType) -> bool:
    """Whether the condition is there and True."""
    condition = find(conditions, kind)
    return condition is not None and condition.status == "True"


def shorten(text: str, length: int) -> str:
    """At most so many characters, with an ellipsis where something is missing."""
    return text if len(text) <= length else text[: length - 1] + "…"


def sentence(text: str, *, capital: bool = False) -> str:
    """The original words, ended, and begun with a capital where they stand alone: reports and the API server write
    their texts as they like."""
    text = text.strip()
    text = text[:1].upper() + text[1:] if capital else text
    return text if not text or text[-1] in ".!?:…" else f"{text}."
