"""What the stages leave behind: a report on the artifact volume, and its summary as termination message.

A summary is one JSON object of at most 4,096 bytes: {"stage": ..., "ok": true, ...} or, when the stage
failed, {"stage": ..., "ok": false, "failure": {...}}. Kubernetes cuts what is longer, which would make it
unreadable, so `Summary.to_message` shortens it until it fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field

from finetune_api.base import StatusModel
from finetune_api.conditions import FailureReason, Stage
from finetune_api.cost import CostSum
from finetune_api.interruptions import StopCosts
from finetune_api.measured import BenchmarkScore, CheckScore, EvaluationStatus
from finetune_api.package import PackageSummary
from finetune_api.status import (
    Beginning,
    Checkpoint,
    DatasetStatus,
    Estimate,
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
    begun_by: Beginning | None = Field(
        default=None, description="What began the run that read the data, whose hash may have that in it."
    )
    dataset: DatasetStatus | None = None
    resolved: ResolvedValues | None = None
    estimate: Estimate | None = None
    base_path: str | None = Field(default=None, description="Folder of the base model, relative to the artifact root.")
    # Train
    model: ModelSummary | None = None
    checkpoint: Checkpoint | None = None
    steps: int | None = None
    total_steps: int | None = Field(default=None, description="Of the whole schedule; more when it stopped early.")
    train_loss: float | None = None
    eval_loss: float | None = None
    train_seconds: float | None = None
    resumed_from_step: int | None = None
    stop_costs: StopCosts | None = None
    notes: list[str] = Field(default=[], description="What the user should know, for example a halved micro batch.")
    # Evaluate
    evaluation: EvaluationStatus | None = None
    # Package
    package: PackageSummary | None = None

    def to_message(self) -> str:
        """The summary as JSON of at most MAX_MESSAGE_BYTES bytes, whatever is in it: the first form that fits."""
        forms = (self._form(bounds) for bounds in BOUNDS)
        fitting = (text for text in forms if len(text.encode()) <= MAX_MESSAGE_BYTES)
        return next(fitting, None) or self._verdict()

    def _form(self, bounds: Bounds) -> str:
        """Texts and lists cut, numbers rounded, and what only explains left out; what the control plane needs stays."""
        if bounds is UNBOUND:
            return self._json()
        kept = {"base_path": self.base_path, "model": self.model, "hash": self.hash}  # cut, they would name nothing
        shorter = _bounded(self, bounds)
        return shorter.model_copy(update=kept)._json()

    def _verdict(self) -> str:
        """How the stage ended, in a few words: what is always small enough."""
        failure = self.failure and _bounded(self.failure, BOUNDS[-1])
        return Summary(stage=self.stage, ok=self.ok, run=self.run, reused=self.reused, failure=failure)._json()

    def _json(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=False)


@dataclass(frozen=True, slots=True)
class Bounds:
    """One form of a summary: characters of a text, items of a list, digits of a number, fields that are left out."""

    text: int
    items: int
    digits: int = 17
    without: frozenset[str] = frozenset()


# From what helps least to what would be missed most. The judgement needs each metric of every model, and each check.
EXPLAINING = frozenset({"loss_interval", "length", "estimate", "difference"})
JUDGED = frozenset({"checks", "benchmarks"})  # lists that are never cut; the API bounds them
# What no gate needs, or the control plane knows: only an evaluation with all that can be asked for is so long.
UNJUDGED = frozenset({"notes", "problems", "resolved", "few_shot", "retrieval", "previous"})
UNJUDGED |= {"metric", "questions", "settings_hash", "stopped_by_itself", "loss_difference"}
UNBOUND = Bounds(0, 0)
BOUNDS = (
    UNBOUND,
    Bounds(2000, 20),
    Bounds(1000, 12),
    Bounds(400, 8),
    Bounds(400, 8, 6, EXPLAINING),
    Bounds(100, 4, 6, EXPLAINING),
    Bounds(80, 2, 6, EXPLAINING | {"notes"}),
    Bounds(64, 1, 6, EXPLAINING | {"notes", "problems", "resolved"}),
    Bounds(64, 1, 5, EXPLAINING | UNJUDGED),
)


M = TypeVar("M", bound=BaseModel)


def _bounded(value: M, bounds: Bounds) -> M:
    """The same within the bounds. A field that is left out has its default."""
    fields = type(value).model_fields
    update = {
        name: fields[name].get_default() if name in bounds.without else _part(getattr(value, name), bounds, name)
        for name in fields
    }
    return value.model_copy(update=update)


def _part(value: Any, bounds: Bounds, name: str = "") -> Any:
    if isinstance(value, BaseModel):
        return _bounded(value, bounds)
    if isinstance(value, list):
        return [_part(item, bounds) for item in (value if name in JUDGED else value[: bounds.items])]
    if isinstance(value, str) and not isinstance(value, Enum):
        return value[: bounds.text]
    return float(f"{value:.{bounds.digits}g}") if isinstance(value, float) else value


def parse_summary(message: str | None) -> Summary | None:
    """The summary in a termination message, or None when there is none or it is not ours."""
    if not message:
        return None
    try:
        return Summary.model_validate_json(message)
    except ValueError:
        return None


class Environment(StatusModel):
    """What a stage ran on."""

    image: str | None = Field(default=None, description="The pod's image; none on a laptop.")
    device: str = ""
    precision: str = ""
    python: str = ""
    versions: dict[str, str] = Field(default={}, description="Of the libraries that compute.")
    training_cost: CostSum | None = Field(default=None, description="What the control plane counted for the training.")


class SampleAnswer(StatusModel):
    """One prompt, what the data says, what base and tuned say."""

    prompt: str
    expected: str
    base: str
    tuned: str
    tuned_stopped: bool


class CheckFailure(StatusModel):
    """An answer that does not pass a check, and what is wrong with it."""

    prompt: str
    answer: str
    why: str


class CheckReport(StatusModel):
    """How a behaviour check went, with the first answers that do not pass."""

    score: CheckScore
    failures: list[CheckFailure] = Field(default=[], description="Of the tuned model.")
    base_failures: list[CheckFailure] = Field(default=[], description="Of the base model.")


class BenchmarkReport(StatusModel):
    """How a benchmark went: all its metrics, and on which data."""

    score: BenchmarkScore
    base: dict[str, float] = Field(default={}, description="All metrics of the base model, by lm-eval's names.")
    tuned: dict[str, float] = Field(default={}, description="All metrics of the tuned model.")
    few_shot_examples: int = Field(default=0, description="Solved examples before each question.")
    source: str = Field(default="", description="Where the data is from: hf://OWNER/NAME@COMMIT.")
    harness: str = Field(default="", description="lm-eval and its version.")
    version: str = Field(default="", description="Version of the task.")


class EvaluateReport(StatusModel):
    """`evaluation/report.json`."""

    evaluation: EvaluationStatus
    samples: list[SampleAnswer] = Field(default=[])
    to_judge: list[SampleAnswer] = Field(default=[], description="What the judge is shown.")
    checks: list[CheckReport] = Field(default=[])
    benchmarks: list[BenchmarkReport] = Field(default=[])
    details: dict[str, Any] = Field(default={}, description="What the task tells more of the tuned model.")
    notes: list[str] = Field(default=[], description="What the figures do not say.")
    environment: Environment = Field(default=Environment(), description="On what it was measured.")
    questions_left_out: int = Field(default=0, description="Not asked: the context has no room for an answer.")


class TrainingPoint(StatusModel):
    """What was logged at a step. Losses in nats."""

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None


class TrainingReport(StatusModel):
    """`reports/training.json`: the curves of the training, and on what it ran."""

    points: list[TrainingPoint] = Field(default=[])
    environment: Environment = Environment()


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
    stop_costs: StopCosts = StopCosts()


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
