"""What the Package stage is asked for, and what the status says of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.exports import EXPORT_NAME, MOST_EXPORTS, ExportSpec
from finetune_api.failure import Count, Failure, Word
from finetune_api.tracking import Tracker, TrackingSpec


class ExportStatus(StatusModel):
    """An export that is done: it lies at its destination, whole."""

    name: str = Field(max_length=32, pattern=EXPORT_NAME, description="As in output.exports.")
    uri: Annotated[str, Field(max_length=1024)] = Field(
        default="", description="Where it lies: oci://, s3:// or pvc://CLAIM/PATH."
    )
    digest: Word = Field(
        description="SHA-256 of its manifest: for oci:// the image's digest, else that of manifest.json in its folder."
    )
    bytes: Count = Field(default=0, description="Size of its files.")
    difference: float | None = Field(
        default=None,
        description="Largest difference of its outputs from the tuned model's in PyTorch, on held-out examples, of the "
        "largest output.",
    )
    agreement: float | None = Field(
        default=None,
        description="Share of the tokens (or examples) whose best output is the tuned model's in PyTorch, 0 to 1.",
    )


class TrackerStatus(StatusModel):
    """A tracker that has the run."""

    tracker: Tracker = Field(description="Which one.")
    url: Annotated[str, Field(max_length=1024)] = Field(
        default="", description="Where the run is seen; empty for files on the claim."
    )


class PackageStatus(StatusModel):
    """What was made of the run's model beside serving it. A failure here never touches what is served."""

    promoted: bool = Field(default=False, description="Whether the run had passed its gate: only then it is exported.")
    settings_hash: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="Of what was asked for, as it was then. Another one: packaged anew."
    )
    attempt: Count = Field(default=1, description="Of packaging; above 1 after failures.")
    exports: list[ExportStatus] = Field(
        default=[],
        max_length=MOST_EXPORTS,
        description="Exports that are done.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    trackers: list[TrackerStatus] = Field(
        default=[],
        max_length=len(Tracker),
        description="Trackers that have the run.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["tracker"]},
    )
    failure: Failure | None = Field(default=None, description="Why packaging does not go on.")


class PackageInputs(StatusModel):
    """What the package pod is told beside run.json, which may be older."""

    exports: list[ExportSpec] = Field(default=[])
    tracking: TrackingSpec = TrackingSpec()
    measured: str | None = Field(default=None, description="By which settings: other figures are written down anew.")

    @property
    def is_empty(self) -> bool:
        return not self.exports and not self.tracking.trackers

    @property
    def settings(self) -> dict[str, Any]:
        """Without defaults and without names of Secrets: what another package would differ in."""
        result: dict[str, Any] = {}
        if self.exports:
            result["exports"] = [export.settings for export in self.exports]
        if self.tracking.trackers:
            result |= {"tracking": self.tracking.settings, "measured": self.measured}
        return result


class PackageSummary(StatusModel):
    """The stage's part of its summary."""

    exports: list[ExportStatus] = Field(default=[])
    trackers: list[TrackerStatus] = Field(default=[])
