"""What is wrong, as every part of the status says it, and the types of its words."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.conditions import FailureReason, Stage

MESSAGE_LENGTH = 4096  # characters of a message kept; longer ones are cut by the operator
Message = Annotated[str, Field(max_length=MESSAGE_LENGTH)]
Word = Annotated[str, Field(max_length=253)]
Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
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
