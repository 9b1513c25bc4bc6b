"""The plain values that flow through the control plane: what is observed, and what shall be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.conditions import FailureReason
from finetune_api.interruptions import StopCosts
from finetune_api.job import FineTuneJob
from finetune_api.status import Checkpoint, FineTuneJobStatus, Progress

Manifest = dict[str, Any]
"""A Kubernetes object as JSON has it."""


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """What the training pod of one run last said, already checked and bounded."""

    run: int
    progress: Progress
    checkpoint: Checkpoint | None = None
    stop_costs: StopCosts | None = None


@dataclass(frozen=True, slots=True)
class ApplyFailure:
    """The API server refused our last write for this job, and why."""

    reason: FailureReason
    message: str


@dataclass(frozen=True, slots=True)
class PodRefusal:
    """The Job controller could not make a Job's pod: the API server's words, and when it last tried (RFC 3339)."""

    message: str
    time: str


@dataclass(frozen=True, slots=True)
class Origin:
    """The job that `baseModel.fineTuneJob` names, where it is there, and the jobs that it waits for, one after the
    other, as far as none of them has a promoted run."""

    job: FineTuneJob | None = None
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that is known of a job's children, by name. Nothing in here is read on demand."""

    jobs: Mapping[str, Manifest] = field(default_factory=dict)
    pods: Sequence[Manifest] = ()
    config_maps: Mapping[str, Manifest] = field(default_factory=dict)
    deployments: Mapping[str, Manifest] = field(default_factory=dict)
    services: Mapping[str, Manifest] = field(default_factory=dict)
    progress: ProgressReport | None = None
    origin: Origin = field(default_factory=Origin)
    apply_failure: ApplyFailure | None = None
    # Jobs that name this one in baseModel.fineTuneJob, as far as it has a rule of retention; None: unreadable.
    dependents: Sequence[FineTuneJob | None] = ()
    # Pods with the job's label that a Job made which is gone: of a deleted FineTuneJob of this name, or of our own
    # Job that somebody deleted without waiting for its pods.
    former_pods: Sequence[Manifest] = ()
    refusals: Mapping[str, PodRefusal] = field(default_factory=dict)  # by name of the Job
    workloads: Mapping[str, Manifest] = field(default_factory=dict)  # Kueue's, by name of the Job
    rolling: int = 0  # other jobs whose servers are being replaced now
    # Uids of Jobs of whose pods only a watch has told, which may be late: of the others all is known.
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """An object to delete. Foreground: it vanishes only after its pods did."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event about the job. `reason` is PascalCase."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What one pass decided. Executed in this order: apply, status (when changed), events, delete."""

    status: FineTuneJobStatus
    apply: tuple[Manifest, ...] = ()
    delete: tuple[ObjectRef, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None  # seconds
    awaits_turn: bool = False  # its servers shall be replaced as soon as those of fewer other jobs are
    unread: bool = False  # a Job of `Observed.unread` has ended, and there is no verdict without its pods' last words
