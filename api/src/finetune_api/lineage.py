"""What a model was built on: the run that it goes on from, and the runs before that."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.base_model import ContinueMode
from finetune_api.fields import Count, Word
from finetune_api.tasks import MethodType, Task

MOST_ANCESTORS = 16  # runs one upon another


class Ancestor(StatusModel):
    """A run that a model was built on."""

    job: Word = Field(description="FineTuneJob, in the same namespace.")
    run: Count = Field(description="Its run.")
    sha256: Word | None = Field(default=None, description="Digest of that model's manifest.")
    mode: ContinueMode = Field(description="How the next run went on from it: Stack or Continue.")


class ModelStatus(StatusModel):
    """A verified model."""

    run: Count = Field(description="Run that made it.")
    uri: Annotated[str, Field(max_length=1024)] = Field(description="pvc://CLAIM/PATH of the adapter or model.")
    sha256: Word | None = Field(default=None, description="Digest of its manifest.")
    name: Word = Field(description="Name by which the endpoint answers.")
    kind: Literal["Adapter", "Model"] = Field(description="An adapter on the base model, or a whole model.")
    base_uri: Annotated[str, Field(max_length=1024)] | None = Field(
        default=None, description="pvc://CLAIM/PATH of the base."
    )
    task: Task | None = Field(default=None, description="What it learned.")
    method: MethodType | None = Field(default=None, description="How it was trained.")
    rank: Count | None = Field(default=None, description="Rank of the adapter.")
    precision: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Arithmetic in which it was trained and measured, and is served."
    )
    base_name: Word | None = Field(default=None, description="Name by which the endpoint answers for the base.")
    source: Annotated[str, Field(max_length=1200)] | None = Field(
        default=None, description="Where the first base model came from, and its commit or digest behind an @."
    )
    lineage: list[Ancestor] = Field(
        default=[], max_length=MOST_ANCESTORS, description="The runs that it was built on, the nearest first."
    )


class ContinuedFrom(StatusModel):
    """The promoted model that a run goes on from, as it was when the run began."""

    job: Word = Field(description="FineTuneJob, in the same namespace.")
    mode: ContinueMode = Field(description="Continue goes on with its adapter, Stack trains on the merged model.")
    model: ModelStatus = Field(description="That model.")

    @property
    def lineage(self) -> list[Ancestor]:
        """Of what is built on it."""
        own = Ancestor(job=self.job, run=self.model.run, sha256=self.model.sha256, mode=self.mode)
        return [own, *self.model.lineage][:MOST_ANCESTORS]

    @property
    def continues(self) -> bool:
        """Whether it goes on with the adapter itself."""
        return self.mode is ContinueMode.CONTINUE
