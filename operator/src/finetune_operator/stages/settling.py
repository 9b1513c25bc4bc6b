"""Edits that come one after the other train once: a changed specification is prepared at once, and trained when it has
not changed again for a while. Prepare takes no GPU, and mostly takes longer than that."""

from __future__ import annotations

from finetune_api.conditions import Stage, Trigger
from finetune_api.status import RunStatus
from finetune_operator.stages.view import View
from finetune_operator.times import parse_time

# The first run of a job, and one by the schedule, wait for nobody. Data and its commit may come one after the other.
EDITS = (Trigger.SPEC_CHANGED, Trigger.RERUN, Trigger.DATASET_CHANGED)


def settled_after(view: View, run: RunStatus, stage: Stage) -> float | None:
    """Seconds until the run may train; None: now. Each edit of what training depends on is another run."""
    if stage is not Stage.TRAIN or run.trigger not in EDITS:
        return None
    quiet = view.settings.settle_seconds
    left = quiet - (view.now - parse_time(run.start_time, view.now)).total_seconds()
    return left if 0 < left <= quiet else None  # a start in the future is the work of a clock that was put back
