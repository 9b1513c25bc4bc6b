"""How a job stands, in one word and one line: what a list of jobs is read for."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.conditions import ConditionType, Stage
from finetune_api.job import FineTuneJob
from finetune_operator.cli import words
from finetune_operator.conditions import shorten
from finetune_operator.stages.budget import HELD

WHY_LENGTH = 160  # characters of a reason in a list; `finetune status NAME` has all of it


@dataclass(frozen=True, slots=True)
class State:
    """`word` says it, `style` only repeats it in colour, `why` is what one would ask next."""

    word: str
    style: str
    why: str


def state_of(job: FineTuneJob, *, driven: bool) -> State:
    """`driven`: whether a command is at work on the job now; the status alone cannot tell a run that was stopped."""
    failure = job.status.run.failure if job.status.run else None
    if words.condition(job, ConditionType.STALLED) == "True":
        if failure is None:
            return State("not promoted", "yellow", _line(words.message(job)))
        if failure.reason in HELD:  # not ended: it goes on when its budget is raised
            return State("held", "yellow", _line(f"{failure.reason}: {failure.message}"))
        return State("FAILED", "red", _line(f"{failure.reason}: {failure.message}"))
    if driven:
        served = words.condition(job, ConditionType.SERVING) == "True"
        return State("serving", "green", _address(job)) if served else State("running", "cyan", _doing(job))
    if words.condition(job, ConditionType.READY) == "True":
        return State("finished", "green", f"finetune chat {words.named(job)}")
    if words.condition(job, ConditionType.SUSPENDED) == "True":
        return State("suspended", "yellow", _line(words.message(job)))
    return State("stopped", "yellow", f"{_reached(job)}; go on with: finetune run {words.named(job)}")


def _address(job: FineTuneJob) -> str:
    return f"answers at {job.status.endpoint.url}" if job.status.endpoint else ""


def _doing(job: FineTuneJob) -> str:
    run, stage = job.status.run, job.status.stage
    if run is None or stage is None:
        return "begins"
    if run.failure:
        return _line(f"waits: {run.failure.reason}: {run.failure.message}")
    return f"{stage}: {words.training(run) if stage is Stage.TRAIN else words.DOES[stage]}"


def _reached(job: FineTuneJob) -> str:
    run, stage = job.status.run, job.status.stage
    if run is None or stage is None:
        return "nothing was done yet"
    if stage is Stage.TRAIN and run.checkpoint:
        return f"in {stage}, saved at step {run.checkpoint.step:,}"
    return f"in {stage}"


def _line(text: str) -> str:
    return shorten(" ".join(text.split()), WHY_LENGTH)
