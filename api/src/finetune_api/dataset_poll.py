"""`spec.triggers.datasetPoll`: looks at the data behind names that stay, what the status keeps of them, and what the
pod that looks is told."""

from __future__ import annotations

from pydantic import Field

from finetune_api.base import ApiModel, Bool, Int, StatusModel
from finetune_api.failure import Count, Time, Word

HOUR = 3600


class DatasetPollSpec(ApiModel):
    """Looks at the sources of `dataset`; data that is not what the newest run has read starts a run."""

    period_seconds: Int = Field(
        default=HOUR,
        ge=60,
        le=2592000,
        description="About how often is looked, seconds (60 to 30 days). Each job has a minute of the hour of its own, "
        "so that not all are looked at together. While a run is under way nobody looks.",
    )
    suspend: Bool = Field(
        default=False,
        description="true: nobody looks. A change that comes meanwhile is found by the first look afterwards.",
    )


class DatasetPollStatus(StatusModel):
    """What looks at the data have found."""

    run: Count = Field(description="Run whose data is compared with.")
    last_time: Time | None = Field(
        default=None,
        description="When the data was last looked at. Looks that find nothing new are written once a day; the Job of "
        "the last one has its exact time.",
    )
    fingerprint: Word | None = Field(
        default=None,
        description="What the first look found, where the run's Prepare left no fingerprint to compare with.",
    )
    failures: Count = Field(default=0, description="Looks in a row that failed. Each waits longer for the next one.")


class PollOrder(StatusModel):
    """What the pod is told beside `run.json`: what the run has read."""

    fingerprint: str | None = Field(
        default=None, description="Of the data's versions; empty: it could not be read; None: not known."
    )
    sha256: str | None = Field(default=None, description="Of the data itself; None: not known.")
