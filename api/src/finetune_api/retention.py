"""What of finished runs stays on the claim: the rule, what it means for each run, and how its removal went."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Int, Named, Rule, StatusModel
from finetune_api.failure import Count, Time

RUN_FOLDER = r"^[0-9]{1,7}-[0-9a-f]{8}$"
CHECKPOINTS = "checkpoints"


class CheckpointRetention(Named):
    KEEP = "Keep"
    REMOVE = "Remove"


class RetentionSpec(ApiModel):
    """What is removed from the claim. No part of a run."""

    keep_runs: Int | None = Field(
        default=None,
        ge=1,
        le=20,
        description="So many runs that made a model, the newest, keep their files; a run without a model keeps them "
        "until so many came after it. Absent: as many as the history has.",
    )
    max_age_days: Int | None = Field(
        default=None,
        ge=1,
        le=3650,
        description="Days after its end when a run's files are removed. Absent: age removes nothing.",
    )
    checkpoints: CheckpointRetention = Field(
        default=CheckpointRetention.REMOVE,
        description="Remove: a run that made its model, or is not the present one, loses its checkpoints; one that was "
        "superseded an hour later, since an edit may be taken back. Keep: they go with the run.",
    )
    rules: ClassVar = (
        Rule(
            "has(self.keepRuns) || has(self.maxAgeDays) || self.checkpoints == 'Remove'",
            "output.retention: it removes nothing; set keepRuns or maxAgeDays, or remove it",
            lambda retention: (
                retention.keep_runs is not None
                or retention.max_age_days is not None
                or retention.checkpoints is CheckpointRetention.REMOVE
            ),
        ),
    )

    def ends(self, completion: datetime) -> datetime | None:
        """When a run that ended then is too old."""
        return completion + timedelta(days=self.max_age_days) if self.max_age_days is not None else None


class FilesState(Named):
    """What becomes of a run's files."""

    KEPT = "Kept"
    REMOVING = "Removing"  # decided: the run can be served no more
    REMOVAL_FAILED = "RemovalFailed"  # the same, and the last attempt failed
    REMOVED = "Removed"


class RunFiles(StatusModel):
    """A run's files on its claim: whether they stay, until when, and why."""

    state: FilesState = Field(description="Kept, Removing, RemovalFailed or Removed.")
    until: Time | None = Field(default=None, description="When they are too old, where nothing else keeps them.")
    checkpoints: FilesState | None = Field(default=None, description="The same of its checkpoints, where they differ.")
    message: Annotated[str, Field(max_length=512)] = Field(default="", description="Why.")


class Removal(StatusModel):
    """One folder that a removal pod is told of: a run's, or its checkpoints."""

    run: Count = Field(description="Number of the run.")
    folder: str = Field(pattern=RUN_FOLDER, description="Name of its folder: NUMBER-HASH8.")
    checkpoints_only: bool = Field(default=False)


class RemovalOrder(StatusModel):
    """All that a removal pod is told. Paths are relative to the root of the claim."""

    runs: str = Field(description="NAMESPACE/JOB/runs, the only folder that anything is removed from.")
    removals: list[Removal] = Field(max_length=40)

    @property
    def wire(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


class RemovalSummary(StatusModel):
    """The pod's last words."""

    ok: bool
    removed: int = Field(default=0, description="Folders that were there and are gone.")
    bytes: Count = Field(default=0, description="What that freed.")
    message: str = Field(default="", description="What went wrong.")
