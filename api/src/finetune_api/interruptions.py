"""What it costs to stop a training and go on from its checkpoint, and the time that it is given for that."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_api.base import StatusModel

Seconds = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]


class StopCosts(StatusModel):
    """What the trainer measures. The sum of lost steps lies beside its checkpoints: no restart forgets it."""

    step_seconds: Seconds | None = Field(default=None, description="Slowest optimizer step of the attempt, seconds.")
    save_seconds: Seconds | None = Field(default=None, description="Slowest checkpoint of the attempt, seconds.")
    lost_steps: Steps = Field(
        default=0, description="Optimizer steps that were trained again, because no checkpoint had them."
    )


class Interruptions(StopCosts):
    """How a run bears preemption, drain and suspension."""

    grace_seconds: Steps | None = Field(
        default=None,
        description="Seconds that the training pod has between the request to stop and its end: a default for a run's "
        "first Job, for later ones what stepSeconds and saveSeconds ask for.",
    )
