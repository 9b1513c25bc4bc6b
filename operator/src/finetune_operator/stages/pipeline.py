"""The stages that run as Jobs, in order: how each is told, and what its summary brings into the status."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from finetune_api.conditions import ConditionType, Stage
from finetune_api.exports import ExportSpec, destination
from finetune_api.job import RECURRING, evaluation_hash
from finetune_api.package import PackageStatus
from finetune_api.reports import Summary, model_status
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Beginning, Progress, ResolvedValues, RunStatus
from finetune_operator import names
from finetune_operator.builders.stage_job import run_claim
from finetune_operator.conditions import shorten
from finetune_operator.interruption import newer, with_costs
from finetune_operator.stages.cost import with_training_cost
from finetune_operator.stages.job_stage import JobStage, Words
from finetune_operator.stages.view import View
from finetune_operator.times import parse_time

NOTES, NOTE_LENGTH = 8, 512  # bounds of status.run.notes


def is_finite(value: object) -> bool:
    """Whether all numbers in a report are numbers: JSON in a Kubernetes status knows no NaN and no infinity."""
    if isinstance(value, BaseModel):
        return all(is_finite(part) for _, part in value)
    if isinstance(value, list):
        return all(is_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)


def prepared(view: View, run: RunStatus, summary: Summary) -> RunStatus | None:
    """The data's figures, what `auto` became, the estimate, and whose files they are."""
    if summary.dataset is None or not is_finite(summary):
        return None
    update = {
        "dataset": summary.dataset,
        "resolved": summary.resolved,
        "estimate": summary.estimate,
        "taken_over": _taken_over(run, summary),
    }
    return run.model_copy(update=update)


def _taken_over(run: RunStatus, summary: Summary) -> Beginning | None:
    """What began the run that read the data, where that is a forgotten one: this run came by no occasion."""
    found = summary.begun_by
    return found if found and found.trigger in RECURRING and run.trigger not in RECURRING else None


def kept_dataset(view: View, run: RunStatus, summary: Summary) -> RunStatus:
    """The line numbers, when the data was refused."""
    return run.model_copy(update={"dataset": summary.dataset}) if summary.dataset else run


def trained(view: View, run: RunStatus, summary: Summary) -> RunStatus | None:
    """The verified model, and the progress at its end."""
    if summary.model is None or not is_finite(summary):
        return None
    spec, meta = view.job.spec, view.job.metadata
    model = model_status(
        summary.model,
        claim=run_claim(view.job, run),
        run=run.number,
        name=names.tuned_name(meta.name, spec, run.continued_from),
    ).model_copy(update=_facts(spec, run, summary.resolved or run.resolved))
    update = {
        "model": model,
        "progress": _finished(view, run, summary),
        "checkpoint": summary.checkpoint or run.checkpoint,
        "resolved": summary.resolved or run.resolved,
        "notes": noted(summary.notes),
    }
    return with_training_cost(with_costs(run.model_copy(update=update), summary.stop_costs))


def _facts(spec: FineTuneJobSpec, run: RunStatus, resolved: ResolvedValues | None) -> dict[str, Any]:
    """What its server, and a run that goes on from the model, have to know of it. `resolved`: as Train has told it."""
    continued = run.continued_from
    source = continued.model.source if continued else spec.base_model.source
    if continued is None and resolved is not None and resolved.revision:
        source = f"{source}@{resolved.revision}"
    return {
        "task": spec.task,
        "method": spec.method.type,
        "rank": resolved.lora_rank if resolved else None,
        "precision": resolved.precision if resolved else None,
        "base_name": names.base_name(spec, continued),
        "source": source,
        "lineage": continued.lineage if continued else [],
    }


def _finished(view: View, run: RunStatus, summary: Summary) -> Progress:
    """The progress of a training that is through."""
    last = run.progress or Progress()
    steps = summary.steps or last.total_steps or (run.resolved.total_steps if run.resolved else 0)
    return last.model_copy(
        update={
            "percent": 100,
            "step": steps,
            "total_steps": max(steps, summary.total_steps or 0),  # more when it stopped early
            "train_loss": summary.train_loss if summary.train_loss is not None else last.train_loss,
            "eval_loss": summary.eval_loss if summary.eval_loss is not None else last.eval_loss,
            "remaining_seconds": 0,
            "update_time": view.time,
        }
    )


def evaluated(view: View, run: RunStatus, summary: Summary) -> RunStatus | None:
    """The proof against the base model. It is by the present settings: a Job by others is replaced."""
    if summary.evaluation is None or not is_finite(summary):
        return None
    known = {"settings_hash": evaluation_hash(view.job.spec.evaluation), "notes": noted(summary.notes)}
    return run.model_copy(update={"evaluation": summary.evaluation.model_copy(update=known)})


def noted(notes: Sequence[str]) -> list[str]:
    """As many, and as much of each, as the status takes."""
    return [shorten(note, NOTE_LENGTH) for note in notes[:NOTES]]


def judged(view: View, run: RunStatus, summary: Summary) -> RunStatus | None:
    """What the judge prefers, beside the figures."""
    if summary.evaluation is None or summary.evaluation.judge is None or not is_finite(summary.evaluation):
        return None
    found = run.evaluation or summary.evaluation
    known = {"judge": summary.evaluation.judge, "notes": noted([*summary.notes, *found.notes])}
    return run.model_copy(update={"evaluation": found.model_copy(update=known)})


def preferred(run: RunStatus) -> str:
    """What the judge prefers, in a sentence."""
    found = run.evaluation.judge if run.evaluation else None
    if found is None or found.share is None:
        return "The judge gave no verdict."
    return f"The judge prefers the tuned model in {found.wins}, the base in {found.losses} of {found.asked} questions."


def packaged(view: View, run: RunStatus, summary: Summary) -> RunStatus | None:
    """What was exported."""
    return kept_exports(view, run, summary) if summary.package is not None and is_finite(summary) else None


def kept_exports(view: View, run: RunStatus, summary: Summary) -> RunStatus:
    """Those that are done, also when another one failed. Where each lies follows from the spec."""
    if summary.package is None or not is_finite(summary.package):
        return run
    places = {export.name: _place(view, run, export) for export in view.job.spec.output.exports}
    done = [
        export.model_copy(update={"uri": places[export.name]})
        for export in summary.package.exports
        if export.name in places
    ]
    update = {"exports": done, "trackers": summary.package.trackers}
    return run.model_copy(update={"package": (run.package or PackageStatus()).model_copy(update=update)})


def _place(view: View, run: RunStatus, export: ExportSpec) -> str:
    meta = view.job.metadata
    folder = names.run_folder(meta.namespace, meta.name, run.number, run.hash)
    on_claim = f"pvc://{run_claim(view.job, run)}/{folder}/exports/{export.name}"
    return destination(export, run.number, run.hash) or on_claim


def training_progress(view: View, run: RunStatus) -> tuple[RunStatus, float | None]:
    """The last report of the training pod, at most one write an interval; else when to look again (seconds)."""
    report = view.observed.progress
    if report is None or report.run != run.number:
        return run, None
    shown = _finite(report.progress)
    if run.progress is not None and run.progress.model_copy(update={"update_time": None}) == shown:
        return run, None
    if run.progress is not None and run.progress.update_time:
        age = (view.now - parse_time(run.progress.update_time, view.now)).total_seconds()
        left = view.settings.progress_interval_seconds - age
        if 0 < left <= view.settings.progress_interval_seconds:
            return run, left
    # The time of writing, not of reporting: the interval bounds our writes, and a pod's clock may be wrong.
    progress = shown.model_copy(update={"update_time": view.time})
    run = run.model_copy(update={"progress": progress, "checkpoint": newer(report.checkpoint, run.checkpoint)})
    return with_costs(run, report.stop_costs), None


def _finite(progress: Progress) -> Progress:
    """Without its time, and without what is not a number: a diverging loss may be reported as NaN."""
    dropped = [name for name, value in progress if not is_finite(value)]
    return progress.model_copy(update=dict.fromkeys([*dropped, "update_time"]))


def checked(run: RunStatus) -> str:
    """What the data is, in a sentence."""
    data = run.dataset
    if data is None:
        return f"The data of run {run.number} was checked."
    counts = f"{data.train_examples} training and {data.validation_examples} held-out examples"
    return f"{counts}, {data.to_learn}, {len(data.problems)} kinds of problem."


def measured(run: RunStatus) -> str:
    """What was measured, in a sentence."""
    scores = run.evaluation
    if scores is None or scores.tuned is None:
        return f"Run {run.number} was measured."
    base = f", base {scores.base.loss:.4g}" if scores.base else ""
    return f"Held-out loss {scores.tuned.loss:.4g}{base}, on {scores.examples} examples."


def exported(run: RunStatus) -> str:
    """What was made, in a sentence."""
    package = run.package or PackageStatus()
    done = [f"{export.name} to {export.uri}" for export in package.exports]
    done += [f"{tracker.tracker} {tracker.url}".rstrip() for tracker in package.trackers]
    return f"Run {run.number} is exported: {', '.join(done)}."


def measured_again(run: RunStatus) -> tuple[str, str] | None:
    """That there are figures already."""
    if run.evaluation is None:
        return None
    text = f"Run {run.number} is measured again, because spec.evaluation changed; until then the former figures count."
    return "MeasuredAgain", text


PIPELINE = (
    JobStage(
        Stage.PREPARE,
        Words(
            doing="Preparing",
            sentence="is being prepared: model and data are fetched and checked",
            condition=ConditionType.DATASET_VALID,
            reached="Checked",
            result=checked,
            event="DatasetChecked",
        ),
        percent=lambda run: 0,
        absorb=prepared,
        salvage=kept_dataset,
    ),
    JobStage(
        Stage.TRAIN,
        Words(
            doing="Training",
            sentence="is training",
            condition=ConditionType.TRAINED,
            reached="Verified",
            result=lambda run: f"Run {run.number} made a model that passed verification.",
            event="TrainingFinished",
            begun=("TrainingStarted", "trains"),
        ),
        percent=lambda run: run.progress.percent if run.progress else 0,
        absorb=trained,
        live=training_progress,
    ),
    JobStage(
        Stage.EVALUATE,
        Words(
            doing="Evaluating",
            sentence="is being measured against the base model",
            condition=ConditionType.EVALUATED,
            reached="Measured",
            result=measured,
            event="Evaluated",
            again=measured_again,
        ),
        percent=lambda run: 100,
        absorb=evaluated,
    ),
)
# Only where a judge is named; what it says belongs to the figures that the gate judges by.
JUDGE = JobStage(
    Stage.JUDGE,
    Words(
        doing="Judging",
        sentence="has its answers judged",
        condition=ConditionType.JUDGED,
        reached="Judged",
        result=preferred,
        event="Judged",
    ),
    percent=lambda run: 100,
    absorb=judged,
)
# Beside serving, so that nothing waits for it: see package.py.
PACKAGE = JobStage(
    Stage.PACKAGE,
    Words(
        doing="Packaging",
        sentence="is being exported",
        condition=ConditionType.PACKAGED,
        reached="Exported",
        result=exported,
        event="Packaged",
    ),
    percent=lambda run: 100,
    absorb=packaged,
    salvage=kept_exports,
)
STAGES = {stage.stage: stage for stage in (*PIPELINE, JUDGE, PACKAGE)}


def stages_of(spec: FineTuneJobSpec) -> tuple[JobStage, ...]:
    """What a run goes through before its gate."""
    return (*PIPELINE, JUDGE) if spec.evaluation.judge else PIPELINE
