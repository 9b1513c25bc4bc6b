"""Numbers and times as people say them."""

from __future__ import annotations

from datetime import UTC, datetime

from finetune_api.conditions import ConditionType, Stage
from finetune_api.cost import CostStatus
from finetune_api.job import FineTuneJob
from finetune_api.retention import FilesState, RunFiles
from finetune_api.status import RunStatus
from finetune_operator.conditions import find
from finetune_operator.times import parse_time

DOES = {
    Stage.PREPARE: "fetch model and data, check every example",
    Stage.TRAIN: "learn from the examples (loss: how wrong its guesses still are; it should fall)",
    Stage.EVALUATE: "compare base (before) and tuned (after) on the held-out examples",
    Stage.JUDGE: "ask the judge which answers are better",
    Stage.PACKAGE: "export the model",
    Stage.SERVE: "load both models and answer",
}
START_SECONDS = 15  # of a stage on a processor, until its libraries and its model are loaded


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    for unit, size, lower, lower_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // lower_size
            return f"{whole // size} {unit} {rest} {lower}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def time_range(train_seconds: float) -> str:
    """What a training takes with all that stands around it: from idle processors to what was seen on busy ones.

    The estimate is of optimizer steps alone. Seen beside it on two cores (520 steps of a tiny model, estimated 50 s):
    15 s until Train has its libraries and its model, as much for Evaluate, 4 s to verify and write; the steps took 1.3
    times as long as estimated with a load of 2, and 2.9 times with a load of 5.
    """
    low, high = train_seconds + 2 * START_SECONDS, 3 * train_seconds + 4 * START_SECONDS
    return f"{rounded(low)} to {rounded(high)}"


def rounded(seconds: float) -> str:
    """A time that promises no more than it can: 40 s, 3 min, 2 h."""
    for limit, step in ((120, 10), (7200, 60)):
        if seconds < limit:
            return duration(max(step, round(seconds / step) * step))
    return duration(round(seconds / 3600) * 3600)


def size(amount: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def files(kept: RunFiles) -> str:
    """What becomes of a run's files, in a line."""
    gone = "; no checkpoints" if kept.checkpoints is FilesState.REMOVED else ""
    text = kept.message if kept.message.startswith(("its files", "removed")) else f"files {kept.message or 'kept'}"
    return text + (gone if kept.state is FilesState.KEPT else "")


def age(since: str | None) -> str:
    """Time since, in its largest unit, as kubectl has it."""
    now = datetime.now(UTC)
    seconds = (now - parse_time(since, now)).total_seconds()
    for unit, unit_size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= unit_size:
            return f"{int(seconds // unit_size)}{unit}"
    return f"{int(max(seconds, 0))}s"


def cost(used: CostStatus) -> str:
    """1.52 GPU hours, 6.38 EUR (estimated: 3.10 GPU hours, 13.02 EUR)."""
    return used.whole.told + (f" (estimated: {used.estimate.told})" if used.estimate else "")


def stage_seconds(run: RunStatus, stage: Stage) -> float | None:
    """How long the stage took, or takes by now; None before it began."""
    entry = next((entry for entry in run.stages if entry.stage is stage), None)
    if entry is None or entry.start_time is None:
        return None
    now = datetime.now(UTC)
    return (parse_time(entry.completion_time, now) - parse_time(entry.start_time, now)).total_seconds()


def result_of(run: RunStatus, stage: Stage) -> str:
    """What a finished stage found, in a line."""
    if stage is Stage.PREPARE and run.dataset:
        data = run.dataset
        held = f"{data.validation_examples:,} held out to test it"
        pieces = "" if data.labels else " (pieces of words)"
        return f"{data.train_examples:,} examples to learn from, {held}; {data.to_learn}{pieces}"
    if stage is Stage.TRAIN and run.progress:
        loss = f", loss {run.progress.train_loss:.2f}" if run.progress.train_loss is not None else ""
        return f"{run.progress.total_steps:,} steps{loss}; the model is verified"
    if stage is Stage.EVALUATE and run.evaluation and run.evaluation.tuned:
        scores = run.evaluation
        base = f"{scores.base.loss:.2f} before training, " if scores.base else ""
        return f"loss on the held-out examples: {base}{run.evaluation.tuned.loss:.2f} after"
    if stage is Stage.JUDGE and run.evaluation and run.evaluation.judge:
        judge = run.evaluation.judge
        return f"the tuned answer is preferred {judge.wins} times, the base's {judge.losses}, of {judge.asked}"
    if stage is Stage.PACKAGE and run.package:
        done = [f"{export.name} ({size(export.bytes)})" for export in run.package.exports]
        return ", ".join([*done, *(tracker.tracker for tracker in run.package.trackers)]) or "done"
    return "done"


def training(run: RunStatus) -> str:
    """Where the training is, in a line."""
    progress = run.progress
    if progress is None or not progress.total_steps:
        return "loading"
    parts = [f"step {progress.step:,} of {progress.total_steps:,}"]
    if progress.train_loss is not None:
        parts.append(f"loss {progress.train_loss:.2f}")
    if progress.step >= progress.total_steps:
        parts.append("verifying the model")
    elif progress.remaining_seconds is not None:
        parts.append(f"about {duration(progress.remaining_seconds)} left")
    return ", ".join(parts)


def named(job: FineTuneJob) -> str:
    """The job as a command line names it."""
    space = job.metadata.namespace
    return job.metadata.name if space == "default" else f"{job.metadata.name} -n {space}"


def condition(job: FineTuneJob, kind: ConditionType) -> str:
    """True, False, Unknown, or empty."""
    found = find(job.status.conditions, kind)
    return found.status if found else ""


def message(job: FineTuneJob) -> str:
    """What the summary conditions say, or for a job that is done what that means on one machine."""
    if job.status.model and not job.spec.serving.replicas and condition(job, ConditionType.READY) == "True":
        run = job.status.model.run
        return f"Run {run} is trained and promoted. It answers while `finetune serve` or `finetune chat` runs."
    for kind in (ConditionType.STALLED, ConditionType.RECONCILING, ConditionType.READY):
        found = find(job.status.conditions, kind)
        if found and found.status == "True":
            return found.message
    held = find(job.status.conditions, ConditionType.SUSPENDED)
    return held.message if held else ""
