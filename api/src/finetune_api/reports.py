"""What the stages leave behind: a report on the artifact volume, and its summary as termination message.

A summary is one JSON object of at most 4,096 bytes: {"stage": ..., "ok": true, ...} or, when the stage
failed, {"stage": ..., "ok": false, "failure": {...}}. Kubernetes cuts what is longer, which would make it
unreadable, so `Summary.to_message` shortens texts until it fits.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.conditions import FailureReason, Stage
from finetune_api.status import (
    Checkpoint,
    DatasetStatus,
    Estimate,
    EvaluationStatus,
    ModelStatus,
    ResolvedValues,
)

MAX_MESSAGE_BYTES = 4096  # Kubernetes' limit for a termination message of one container


class StageFailure(StatusModel):
    """Why a stage ended. `message` names the place, `advice` the remedy."""

    reason: FailureReason
    message: str
    advice: str = ""


class ModelSummary(StatusModel):
    """The verified model. Paths are relative to the root of the artifact volume."""

    path: str = Field(description="Folder of the adapter or model.")
    base_path: str = Field(description="Folder of the base model.")
    kind: Literal["Adapter", "Model"]
    sha256: str = Field(description="Digest of the folder's manifest.json.")


class Summary(StatusModel):
    """The summary of any stage; only the stage's own part is set."""

    stage: Stage
    ok: bool
    run: int = 0
    hash: str = ""
    reused: bool = Field(default=False, description="The stage had been done before; its report was found and kept.")
    failure: StageFailure | None = None
    # Prepare
    dataset: DatasetStatus | None = None
    resolved: ResolvedValues | None = None
    estimate: Estimate | None = None
    base_path: str | None = Field(default=None, description="Folder of the base model, relative to the artifact root.")
    # Train
    model: ModelSummary | None = None
    checkpoint: Checkpoint | None = None
    steps: int | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    train_seconds: float | None = None
    resumed_from_step: int | None = None
    notes: list[str] = Field(default=[], description="What the user should know, for example a halved micro batch.")
    # Evaluate
    evaluation: EvaluationStatus | None = None

    def to_message(self) -> str:
        """The summary as JSON of at most MAX_MESSAGE_BYTES bytes."""
        text = self._json()
        shorter = self
        for cut in (2000, 1000, 400, 100):
            if len(text.encode()) <= MAX_MESSAGE_BYTES:
                break
            shorter = self._cut(cut)
            text = shorter._json()
        return text

    def _json(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=False)

    def _cut(self, length: int) -> Summary:
        failure = self.failure and self.failure.model_copy(
            update={"message": self.failure.message[:length], "advice": self.failure.advice[:length]}
        )
        dataset = self.dataset and self.dataset.model_copy(
            update={
                "problems": [
                    p.model_copy(update={"message": p.message[: length // 4]})
                    for p in self.dataset.problems[: max(1, length // 250)]
                ]
            }
        )
        return self.model_copy(
            update={"failure": failure, "dataset": dataset, "notes": [n[:length] for n in self.notes[:4]]}
        )


def parse_summary(message: str | None) -> Summary | None:
    """The summary in a termination message, or None when there is none or it is not ours."""
    if not message:
        return None
    try:
        return Summary.model_validate_json(message)
    except ValueError:
        return None


class SampleAnswer(StatusModel):
    """One prompt, what the data says, what base and tuned say."""

    prompt: str
    expected: str
    base: str
    tuned: str
    tuned_stopped: bool


class EvaluateReport(StatusModel):
    """`evaluation/report.json`."""

    evaluation: EvaluationStatus
    samples: list[SampleAnswer] = Field(default=[])
    details: dict[str, Any] = Field(default={}, description="What the task tells more of the tuned model.")
    questions_left_out: int = Field(default=0, description="Not asked: the context has no room for an answer.")


class ProgressFile(StatusModel):
    """`progress.json` in the run's folder: what the trainer last knew, for a laptop and for the next attempt."""

    percent: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    tokens_per_second: float | None = None
    checkpoint_step: int | None = None
    remaining_seconds: int | None = None
    update_time: str = ""
    attempt_first_step: int = Field(default=0, description="Step at which this attempt began; above 0 after a resume.")


def model_status(summary: ModelSummary, *, claim: str, run: int, name: str) -> ModelStatus:
    """The promoted-model entry of the status for a verified model."""
    return ModelStatus(
        run=run,
        uri=f"pvc://{claim}/{summary.path}",
        base_uri=f"pvc://{claim}/{summary.base_path}",
        sha256=summary.sha256,
        name=name,
        kind=summary.kind,
    )
