"""What is found to be wrong, before it becomes the status."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.conditions import FailureReason


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong. `advice` is empty where the general sentence for the reason says it."""

    reason: FailureReason
    message: str
    advice: str = ""
