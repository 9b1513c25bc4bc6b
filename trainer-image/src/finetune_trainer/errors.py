"""Everything that ends a stage early.

TrainerError
 ├── UserInputError        exit 10   the spec, the data, the model or a token must change
 ├── GpuOutOfMemoryError   exit 11   also with the halved micro batch
 ├── LossNotFiniteError    exit 12   training diverged
 ├── ArtifactInvalidError  exit 13   what was made or found on the volume fails verification
 ├── StorageFullError      exit 73   the volume is full; run again when there is room
 ├── InterruptedStageError exit 75   SIGTERM; a checkpoint was saved, run again
 └── PackageError          exit of what went wrong with an export; the others are done
Any other exception is a system fault: exit 1, retried with backoff.
"""

from __future__ import annotations

from typing import ClassVar

from finetune_api.conditions import ExitCode, FailureReason
from finetune_api.package import PackageSummary
from finetune_api.reports import ProgressFile
from finetune_api.status import DatasetStatus

# Of a file above the platform's bound, which is one for all platforms.
DIVIDE = "divide it: data into several files (dataset.train.files), a model's weights into shards"


class TrainerError(Exception):
    """Base. `message` names the place, `advice` the remedy; both reach the status."""

    exit_code: int = 1
    default_reason: ClassVar[FailureReason] = FailureReason.SYSTEM_FAULT

    def __init__(self, message: str, *, advice: str = "", reason: FailureReason | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.reason = reason or self.default_reason


class UserInputError(TrainerError):
    """The user's input is wrong; trying again without a change is useless."""

    exit_code = ExitCode.USER_INPUT
    default_reason = FailureReason.DATASET_INVALID
    dataset: DatasetStatus | None = None  # what Prepare found until then, for the summary


class GpuOutOfMemoryError(TrainerError):
    """The device's memory does not suffice even after the micro batch was halved."""

    exit_code = ExitCode.GPU_OUT_OF_MEMORY
    default_reason = FailureReason.CUDA_OUT_OF_MEMORY


class LossNotFiniteError(TrainerError):
    """The loss became NaN or infinite."""

    exit_code = ExitCode.LOSS_NOT_FINITE
    default_reason = FailureReason.LOSS_NOT_FINITE


class ArtifactInvalidError(TrainerError):
    """A model, a checkpoint or a manifest does not hold what it must."""

    exit_code = ExitCode.ARTIFACT_INVALID
    default_reason = FailureReason.ARTIFACT_INVALID


class StorageFullError(TrainerError):
    """There is no room on the volume."""

    exit_code = ExitCode.STORAGE_FULL
    default_reason = FailureReason.STORAGE_FULL


class PackageError(TrainerError):
    """An export failed. `done` are the others, for the summary."""

    def __init__(
        self, message: str, *, advice: str, reason: FailureReason, exit_code: int, done: PackageSummary
    ) -> None:
        super().__init__(message, advice=advice, reason=reason)
        self.exit_code = exit_code
        self.done = done


class InterruptedStageError(TrainerError):
    """The stage was asked to stop and saved what it had."""

    exit_code = ExitCode.INTERRUPTED
    default_reason = FailureReason.INTERRUPTED
    progress: ProgressFile | None = None  # of a training: what is saved, and what that took
