"""What is wrong, as every part of the status says it, and the types of its words."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from finetune_api.base import StatusModel
from finetune_api.conditions import FailureReason, Stage

MESSAGE_LENGTH = 4096  # characters of a message kept; longer ones are cut by the operator
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _checked_time(text: str) -> str:
    """A pod's words become status: with a time that the API server refuses, no status of the job could be written."""
    if not RFC_3339.fullmatch(text):
        raise ValueError("is no time as in 2026-01-31T08:00:00Z")
    datetime.fromisoformat(text)  # ValueError where the calendar has no such day, the clock no such minute
    return text


Message = Annotated[str, Field(max_length=MESSAGE_LENGTH)]
Word = Annotated[str, Field(max_length=253)]
Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"}), AfterValidator(_checked_time)]
Count = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]


class Failure(StatusModel):
    """What is wrong, in the original words, and what to do."""

    reason: FailureReason = Field(description="One of a closed list.")
    stage: Stage | None = Field(default=None, description="Stage that it stopped.")
    message: Message = Field(default="", description="The original message.")
    advice: Annotated[str, Field(max_length=1024)] = Field(default="", description="What to do, in one sentence.")
    waiting: bool = Field(
        default=False, description="True while it may still right itself; false when the run has ended."
    )
    since: Time | None = Field(default=None, description="When it began.")
    inputs_hash: Annotated[str, Field(max_length=64)] = Field(
        default="",
        description="Of what the failed stage ran with (compute, Secrets, the claim of Prepare, the settings of an "
        "evaluation). With another one it is tried again.",
    )
