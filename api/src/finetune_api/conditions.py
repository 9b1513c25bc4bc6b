"""The closed lists of the status: condition types, stages, gate verdicts, triggers, failure reasons."""

from __future__ import annotations

from finetune_api.base import Named


class Stage(Named):
    """The stages of a run, in order. `Superseded` and the like are results, not stages."""

    PREPARE = "Prepare"
    TRAIN = "Train"
    EVALUATE = "Evaluate"
    JUDGE = "Judge"
    PACKAGE = "Package"
    SERVE = "Serve"


class ConditionType(Named):
    """Ready, Reconciling and Stalled by kstatus; then one condition for each thing that a run must achieve;
    WithinBudget, Scheduled, DatasetPolled only where there is a budget, a schedule, a poll; Suspended only while
    spec.suspend is true."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    DATASET_VALID = "DatasetValid"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    JUDGED = "Judged"
    PROMOTED = "Promoted"
    SERVING = "Serving"
    PACKAGED = "Packaged"
    WITHIN_BUDGET = "WithinBudget"
    SUSPENDED = "Suspended"
    SCHEDULED = "Scheduled"
    DATASET_POLLED = "DatasetPolled"


class Trigger(Named):
    """Why a run was started."""

    CREATED = "Created"
    SPEC_CHANGED = "SpecChanged"
    RERUN = "Rerun"
    SCHEDULE = "Schedule"
    DATASET_CHANGED = "DatasetChanged"


class GateVerdict(Named):
    PASSED = "Passed"
    FAILED = "Failed"


class RunResult(Named):
    """How a run ended, in `status.runs`."""

    PROMOTED = "Promoted"
    GATE_FAILED = "GateFailed"
    ROLLED_BACK = "RolledBack"  # promoted, but its servers did not take over
    AWAITING_APPROVAL = "AwaitingApproval"  # passed its gate; promotion.mode is Manual
    FAILED = "Failed"
    SUPERSEDED = "Superseded"


class FailureReason(Named):
    """Why something does not go on. Waiting reasons show while they last; the others end the run."""

    # the user's input
    DATASET_INVALID = "DatasetInvalid"
    MODEL_ACCESS = "ModelAccess"
    MODEL_INVALID = "ModelInvalid"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    SOURCE_UNSTEADY = "SourceUnsteady"
    SPEC_INVALID = "SpecInvalid"
    BASE_NOT_PROMOTED = "BaseNotPromoted"
    SCHEDULE_INVALID = "ScheduleInvalid"
    DESTINATION_REFUSED = "DestinationRefused"
    EXPORT_UNSUPPORTED = "ExportUnsupported"
    BUDGET_EXCEEDED = "BudgetExceeded"
    PRICE_MISSING = "PriceMissing"
    # training
    CUDA_OUT_OF_MEMORY = "CudaOutOfMemory"
    LOSS_NOT_FINITE = "LossNotFinite"
    ARTIFACT_INVALID = "ArtifactInvalid"
    # the cluster
    OUT_OF_MEMORY = "OutOfMemory"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePull"
    STORAGE_UNBOUND = "StorageUnbound"
    STORAGE_FULL = "StorageFull"
    DESTINATION_UNAVAILABLE = "DestinationUnavailable"
    CONFIG_MISSING = "ConfigMissing"
    CONFIG_UNREADABLE = "ConfigUnreadable"
    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    INTERRUPTED = "Interrupted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    QUOTA_EXCEEDED = "QuotaExceeded"
    POD_REFUSED = "PodRefused"
    QUEUED = "Queued"
    QUEUE_UNAVAILABLE = "QueueUnavailable"
    JOB_SUSPENDED = "JobSuspended"
    NAME_CONFLICT = "NameConflict"
    FORMER_POD = "FormerPod"
    NOT_READY = "NotReady"
    SMOKE_FAILED = "SmokeFailed"
    RUN_NOT_FOUND = "RunNotFound"
    SYSTEM_FAULT = "SystemFault"


class ExitCode:
    """Exit codes of the trainer's stages: the contract with the Job's podFailurePolicy."""

    DONE = 0
    USER_INPUT = 10  # no retry
    GPU_OUT_OF_MEMORY = 11  # no retry: the micro batch was halved already
    LOSS_NOT_FINITE = 12  # no retry
    ARTIFACT_INVALID = 13  # no retry
    STORAGE_FULL = 73  # retry, not counted: it waits for room (sysexits.h EX_CANTCREAT)
    INTERRUPTED = 75  # a checkpoint was saved: retry, not counted (sysexits.h EX_TEMPFAIL)
