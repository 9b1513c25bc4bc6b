"""`FineTuneJob.status`: what the control plane says. The conditions are the contract."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.conditions import ConditionType, RunResult, Stage, Trigger
from finetune_api.cost import CostStatus as CostStatus
from finetune_api.dataset_poll import DatasetPollStatus as DatasetPollStatus
from finetune_api.failure import MESSAGE_LENGTH as MESSAGE_LENGTH
from finetune_api.failure import Count as Count
from finetune_api.failure import Failure as Failure
from finetune_api.failure import Message as Message
from finetune_api.failure import Time as Time
from finetune_api.failure import Word as Word
from finetune_api.interruptions import Interruptions as Interruptions
from finetune_api.lineage import Ancestor as Ancestor
from finetune_api.lineage import ContinuedFrom as ContinuedFrom
from finetune_api.lineage import ModelStatus as ModelStatus
from finetune_api.measured import FEWEST_EXAMPLES as FEWEST_EXAMPLES
from finetune_api.measured import CheckScore as CheckScore
from finetune_api.measured import EvaluationStatus as EvaluationStatus
from finetune_api.measured import GateStatus as GateStatus
from finetune_api.measured import Interval as Interval
from finetune_api.measured import Scores as Scores
from finetune_api.package import PackageStatus as PackageStatus
from finetune_api.resolved import ResolvedValues as ResolvedValues
from finetune_api.retention import RunFiles
from finetune_api.rollout import Rollback as Rollback
from finetune_api.rollout import SmokeTest
from finetune_api.triggers import Beginning as Beginning
from finetune_api.triggers import ScheduleStatus as ScheduleStatus


class Condition(StatusModel):
    """A Kubernetes condition."""

    type: ConditionType = Field(description="What is judged.")
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?$")] = Field(
        description="One word for machines."
    )
    message: Message = Field(default="", description="A sentence for people.")
    last_transition_time: Time = Field(description="When the status last changed.")
    observed_generation: Count | None = Field(default=None, description="Generation of the spec that was judged.")


class Problem(StatusModel):
    """A kind of problem of the dataset, with the lines where it was found first."""

    check: Word = Field(description="Name of the check.")
    count: Count = Field(description="Examples with this problem.")
    lines: list[Count] = Field(default=[], max_length=20, description="First line numbers, counted from 1.")
    file: Word = Field(default="train", description="train, validation, or, of several, train.files[1].")
    message: Annotated[str, Field(max_length=512)] = Field(default="", description="What is wrong and how to right it.")


class LengthStats(StatusModel):
    """Distribution of lengths, in tokens."""

    min: Count = Field(description="Shortest.")
    p50: Count = Field(description="Median.")
    p90: Count = Field(description="90 of 100 are at most so long.")
    p99: Count = Field(description="99 of 100 are at most so long.")
    max: Count = Field(description="Longest.")


class LabelCount(StatusModel):
    """A label of the training data."""

    label: Word = Field(description="The label.")
    count: Count = Field(description="Training examples (or words) with it.")


class CleaningStep(StatusModel):
    """A step of dataset.cleaning."""

    step: Word = Field(description="Its field, for example nearDuplicates.")
    count: Count = Field(description="Examples that it changed or left out.")


class DatasetStatus(StatusModel):
    """What Prepare found in the data."""

    train_examples: Count = Field(default=0, description="Training examples.")
    validation_examples: Count = Field(default=0, description="Held-out examples.")
    train_tokens: Count = Field(default=0, description="Tokens of the training examples.")
    loss_tokens: Count = Field(
        default=0, description="Tokens that are trained on: what the model shall write, or the words that it labels."
    )
    labels: list[LabelCount] = Field(
        default=[], max_length=100, description="Labels of the training data, in the model's order; the first 100."
    )
    length: LengthStats | None = Field(default=None, description="Tokens of an example.")
    truncated: Count = Field(default=0, description="Examples that are cut at maxLength.")
    dropped: Count = Field(default=0, description="Examples that are left out because nothing to learn remains.")
    duplicates: Count = Field(default=0, description="Examples that occur more than once.")
    overlap: Count = Field(default=0, description="Held-out examples that are also training examples.")
    near_duplicates: Count = Field(
        default=0,
        description="Training examples that are nearly one before them; also those that are then dropped or held out.",
    )
    near_overlap: Count = Field(
        default=0, description="Held-out examples that are nearly a training example: the measure is too good by them."
    )
    cleaned: list[CleaningStep] = Field(
        default=[], max_length=8, description="What was changed, as dataset.cleaning asks, in the order of the steps."
    )
    sha256: Word | None = Field(default=None, description="Digest of the data as read.")
    fingerprint: Word | None = Field(
        default=None,
        description="Of the versions that the sources had (commit, ETag, digest), which a later look compares with.",
    )
    problems: list[Problem] = Field(default=[], max_length=10, description="Errors and warnings, worst first.")

    @property
    def to_learn(self) -> str:
        """How much there is, in a phrase."""
        return f"{len(self.labels)} labels to learn" if self.labels else f"{self.loss_tokens:,} tokens to learn"


class Estimate(StatusModel):
    """What the run is expected to need. Computed from shapes; see docs/estimates.md."""

    memory_bytes: Count = Field(default=0, description="Peak memory of each training process, bytes.")
    train_seconds: Count = Field(default=0, description="Training time, seconds.")


class Progress(StatusModel):
    """Where the training is. Refreshed at most every 10 seconds."""

    percent: Annotated[int, Field(ge=0, le=100)] = Field(default=0, description="Of the training.")
    step: Count = Field(default=0, description="Optimizer steps done.")
    total_steps: Count = Field(default=0, description="Optimizer steps in all.")
    epoch: float | None = Field(default=None, description="Passes done.")
    train_loss: float | None = Field(default=None, description="Last training loss.")
    eval_loss: float | None = Field(default=None, description="Last evaluation loss.")
    tokens_per_second: float | None = Field(default=None, description="Trained tokens a second.")
    remaining_seconds: Count | None = Field(default=None, description="Seconds to the end of training.")
    update_time: Time | None = Field(default=None, description="When the trainer last reported.")


class Checkpoint(StatusModel):
    """The newest complete checkpoint."""

    step: Count = Field(description="Optimizer steps that it holds.")
    time: Time | None = Field(default=None, description="When it was complete.")


class StageTime(StatusModel):
    """When a stage of the run started and ended."""

    stage: Stage = Field(description="The stage.")
    start_time: Time | None = Field(default=None, description="When its Job was created.")
    completion_time: Time | None = Field(default=None, description="When it succeeded.")


class RunStatus(StatusModel):
    """One run: an immutable snapshot of what training depends on, and how far it is."""

    number: Count = Field(description="Counted from 1.")
    hash: Annotated[str, Field(max_length=64)] = Field(description="Of everything that training depends on.")
    trigger: Trigger = Field(description="Why it was started.")
    occasion: Word | None = Field(
        default=None,
        description="What the trigger came with: the time of the schedule, the word of rerunToken, the fingerprint of "
        "changed data.",
    )
    taken_over: Beginning | None = Field(
        default=None,
        description="What had begun the run whose files these are: the cluster had forgotten it, the claim had not.",
    )
    attempt: Count = Field(default=1, description="Of the current stage; above 1 after interruptions.")
    claim_name: Word | None = Field(
        default=None,
        description="PersistentVolumeClaim that the run's files are on. Another output.claimName is for later runs.",
    )
    continued_from: ContinuedFrom | None = Field(
        default=None, description="The promoted model of another run that it goes on from."
    )
    start_time: Time | None = Field(default=None, description="When it was started.")
    stages: list[StageTime] = Field(default=[], max_length=8, description="Times of the stages.")
    resolved: ResolvedValues | None = Field(default=None, description="What `auto` became.")
    dataset: DatasetStatus | None = Field(default=None, description="What Prepare found.")
    estimate: Estimate | None = Field(default=None, description="Expected memory and time.")
    progress: Progress | None = Field(default=None, description="Where the training is.")
    checkpoint: Checkpoint | None = Field(default=None, description="The newest complete checkpoint.")
    interruptions: Interruptions | None = Field(default=None, description="What stopping the training costs.")
    cost: CostStatus | None = Field(default=None, description="GPU time used, and its cost.")
    evaluation: EvaluationStatus | None = Field(default=None, description="The proof.")
    gate: GateStatus | None = Field(default=None, description="The verdict.")
    failure: Failure | None = Field(default=None, description="What is wrong.")
    notes: list[Annotated[str, Field(max_length=512)]] = Field(
        default=[], max_length=8, description="What the trainer wants known, for example a halved micro batch."
    )
    model: ModelStatus | None = Field(default=None, description="What it made.")
    package: PackageStatus | None = Field(default=None, description="What was made of the model beside serving it.")


class RunRecord(StatusModel):
    """A run in the history."""

    number: Count = Field(description="Counted from 1.")
    hash: Annotated[str, Field(max_length=64)] = Field(description="Of everything that training depends on.")
    trigger: Trigger = Field(description="Why it was started.")
    occasion: Word | None = Field(
        default=None,
        description="What the trigger came with: the time of the schedule, the word of rerunToken, the fingerprint of "
        "changed data.",
    )
    result: RunResult = Field(description="How it ended.")
    completion_time: Time | None = Field(default=None, description="When it ended.")
    taken_up_time: Time | None = Field(default=None, description="When the spec asked for it again, after another run.")
    loss: float | None = Field(default=None, description="Held-out loss of the tuned model.")
    base_loss: float | None = Field(default=None, description="Held-out loss of the base model.")
    message: Annotated[str, Field(max_length=512)] = Field(default="", description="Why.")
    continued_from: ContinuedFrom | None = Field(
        default=None, description="The promoted model of another run that it went on from."
    )
    model: ModelStatus | None = Field(default=None, description="What it made.")
    cost: CostStatus | None = Field(default=None, description="GPU time used, and its cost.")
    evaluation: EvaluationStatus | None = Field(
        default=None, description="The proof, so that the gate can be judged again when the run is taken up again."
    )
    rollback: Rollback | None = Field(default=None, description="Why its servers did not take over.")
    claim_name: Word | None = Field(default=None, description="PersistentVolumeClaim that its files are on.")
    files: RunFiles | None = Field(default=None, description="What becomes of its files, by output.retention.")
    fingerprint: Word | None = Field(default=None, description="Of the versions that its data's sources had.")
    dataset_sha256: Word | None = Field(default=None, description="Digest of its data as read.")


class EndpointStatus(StatusModel):
    """Where the model answers."""

    url: Annotated[str, Field(max_length=512)] = Field(description="Base URL for an OpenAI client.")
    model: Word = Field(description="Name of the tuned model.")
    base_model: Word = Field(description="Name of the base model.")
    run: Count = Field(description="Run that answers now.")
    ready_replicas: Count = Field(default=0, description="Servers that are ready.")
    smoke_test: SmokeTest = Field(
        default=SmokeTest(), description="What its servers answered when they took over; another one is for later runs."
    )


class FineTuneJobStatus(StatusModel):
    """Conditions are the contract; the rest explains them."""

    observed_generation: Count = Field(default=0, description="Generation of the spec that this status is about.")
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        description="Ready, Reconciling, Stalled, DatasetValid, Trained, Evaluated, Promoted, Serving; Packaged where "
        "exports are asked for, WithinBudget where there is a budget, Suspended while spec.suspend is true, "
        "Scheduled where there is a schedule, DatasetPolled where the data is looked at.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    stage: Stage | None = Field(default=None, description="Derived from the conditions, for printing.")
    model_name: Word | None = Field(default=None, description="Short name of the base model, for printing.")
    percent: Word | None = Field(default=None, description="Progress, for printing.")
    run: RunStatus | None = Field(default=None, description="The newest run.")
    model: ModelStatus | None = Field(default=None, description="The promoted model.")
    endpoint: EndpointStatus | None = Field(default=None, description="Where it answers.")
    schedule: ScheduleStatus | None = Field(default=None, description="Where spec.triggers.schedule is.")
    dataset_poll: DatasetPollStatus | None = Field(
        default=None, description="What spec.triggers.datasetPoll has found."
    )
    runs: list[RunRecord] = Field(
        default=[],
        max_length=20,
        description="Finished runs, newest last; the oldest are forgotten first, never the one in service.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )
