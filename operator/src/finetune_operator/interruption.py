"""How long a training may take between SIGTERM and SIGKILL: long enough for its step and its checkpoint, as measured.

A stop is granted at the end of an optimizer step, and then the checkpoint is written. The first Job of a run knows
neither time and gets the platform's default.
"""

from __future__ import annotations

import math

from finetune_api.interruptions import Interruptions, StopCosts
from finetune_api.status import Checkpoint, RunStatus
from finetune_operator import names
from finetune_operator.plan import Manifest
from finetune_operator.settings import Settings

MARGIN = 2  # a node that is drained has its disks and its network in use by all who leave it
MORE_SECONDS = 15  # for the manifest with its sums, the termination message, and the end of the process
LEAST_SECONDS = 30  # Kubernetes' own default
MOST_SECONDS = 3600  # a drain must end; spot markets give two minutes at most, whatever is asked for


def needed_grace(costs: StopCosts | None, settings: Settings) -> int:
    """Seconds for one step and one checkpoint, or the default while they are not measured."""
    if costs is None or costs.step_seconds is None or costs.save_seconds is None:
        return settings.train_grace_seconds
    measured = costs.step_seconds + costs.save_seconds
    return min(MOST_SECONDS, max(LEAST_SECONDS, math.ceil(MARGIN * measured) + MORE_SECONDS))


def with_grace(run: RunStatus, settings: Settings) -> RunStatus:
    """The run with the grace period of its next Job. That of a Job that is there never changes with what it measures:
    a Job's template is immutable, and a new Job would lose its place in a queue."""
    return _updated(run, {"grace_seconds": needed_grace(run.interruptions, settings)})


def with_grace_of(run: RunStatus, job: Manifest) -> RunStatus:
    """The run with the grace period of the Job that is there."""
    made = names.number(names.annotation(job, names.ANNOTATION_GRACE))
    return run if made is None else _updated(run, {"grace_seconds": made})


def with_longer_grace(run: RunStatus, settings: Settings) -> RunStatus:
    """The run as its Job should be, when no pod of it runs: one whose grace period is too short would lose the next
    interruption's work, too."""
    return with_grace(run, settings) if needed_grace(run.interruptions, settings) > grace(run, settings) else run


def grace(run: RunStatus, settings: Settings) -> int:
    """Seconds that the run's training pods have."""
    known = run.interruptions.grace_seconds if run.interruptions else None
    return settings.train_grace_seconds if known is None else known


def with_costs(run: RunStatus, costs: StopCosts | None) -> RunStatus:
    """The run with what its trainer measured last. A new attempt that has measured nothing yet takes nothing away."""
    if costs is None or costs == StopCosts():
        return run
    return _updated(run, {name: value for name, value in costs if value is not None})


def newer(one: Checkpoint | None, other: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint of the later step: reports may come late."""
    if one is None or other is None:
        return one or other
    return one if one.step >= other.step else other


def _updated(run: RunStatus, update: dict[str, object]) -> RunStatus:
    known = run.interruptions or Interruptions()
    return run.model_copy(update={"interruptions": known.model_copy(update=update)})
