"""`spec.suspend`: no stage has a Job. What was learnt is on the volume, and the next Job goes on from there.

The stage's Job is deleted, not suspended: docs/decisions has the reasons.
"""

from __future__ import annotations

from enum import Enum, auto

from finetune_api.conditions import ConditionType, Stage
from finetune_api.status import RunStatus
from finetune_operator.conditions import Judgement

SUSPENDED = "Suspended"  # reason of what is held


class Pause(Enum):
    """Why a stage that is not done does not go on: spec.suspend, a budget that is used up, or an edit a moment ago."""

    ENDING = auto()  # its pod saves a checkpoint
    HELD = auto()  # nothing of it runs
    SETTLING = auto()  # prepared; trains unless the spec changes again


def pause_words(run: RunStatus, stage: Stage, pause: Pause) -> tuple[str, str]:
    """Reason and sentence of a pause."""
    if pause is Pause.SETTLING:
        return "Settling", f"Run {run.number} is prepared; it trains in a moment, unless the spec changes once more."
    if pause is Pause.ENDING:
        saves = "saves a checkpoint and ends" if stage is Stage.TRAIN else "ends"
        return "Suspending", f"{stage} of run {run.number} {saves}, because spec.suspend is true."
    saved = stage is Stage.TRAIN and run.checkpoint is not None
    where = f" from the checkpoint of step {run.checkpoint.step}" if saved and run.checkpoint else ""
    return SUSPENDED, f"Run {run.number} is suspended in {stage}; it goes on{where} when spec.suspend is false."


def suspended(run: RunStatus, stage: Stage, pause: Pause | None) -> Judgement:
    """The condition that is there while spec.suspend is true."""
    if pause is None:
        text = "spec.suspend is true. No stage has anything to do; another run would wait."
        return ConditionType.SUSPENDED, "True", "NothingToDo", text
    reason, text = pause_words(run, stage, pause)
    return ConditionType.SUSPENDED, "True" if pause is Pause.HELD else "False", reason, text
