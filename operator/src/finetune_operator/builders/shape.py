"""In what the pods of the stages differ. What each stage is for says `stages/pipeline.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.conditions import Stage


@dataclass(frozen=True, slots=True)
class PodShape:
    """A stage's pod as data.

    `requests` is what it asks for when the user says nothing: small enough for a test cluster, large enough that the
    scheduler does not put ten of them on one node. No limits: only the user knows what is too much.
    """

    requests: Mapping[str, str]
    fetches: bool = False  # reads the sources, with the user's Secrets; needs neither GPU nor the memory of one
    saves: bool = False  # gets the time to save a checkpoint when it is ended
    reports: bool = False  # posts its progress, with a token of its own
    bounded: bool = False  # compute.activeDeadlineSeconds is its time
    delivers: bool = False  # reaches registries and buckets, with the exports' Secrets; needs no GPU
    judges: bool = False  # reaches the judge, with its Secret; needs no GPU
    spreads: bool = False  # over all of compute.gpus or compute.processes; any other stage computes on one device
    measures: bool = False  # works by spec.evaluation as it is now, not as it was when the run began

    @property
    def reaches_out(self) -> bool:
        """Whether it brings something of the run to a place outside, with a Secret for that place alone."""
        return self.delivers or self.judges


SHAPES: dict[Stage, PodShape] = {
    Stage.PREPARE: PodShape({"cpu": "250m", "memory": "512Mi"}, fetches=True),
    Stage.TRAIN: PodShape({"cpu": "500m", "memory": "1Gi"}, saves=True, reports=True, bounded=True, spreads=True),
    Stage.EVALUATE: PodShape({"cpu": "500m", "memory": "1Gi"}, measures=True),
    Stage.JUDGE: PodShape({"cpu": "100m", "memory": "512Mi"}, judges=True),
    Stage.PACKAGE: PodShape({"cpu": "500m", "memory": "1Gi"}, delivers=True),
}
