"""What is made of the run's model beside serving it. It never holds up the server and is never held up by it.

A stage like the others but for three things: its failure has a place of its own in the status, since it ends no run;
what is asked for may change at any time, which packages again; and a failure is tried again by itself.
"""

from __future__ import annotations

from dataclasses import replace

from finetune_api.conditions import FailureReason, Stage
from finetune_api.job import package_hash, package_inputs
from finetune_api.package import PackageStatus
from finetune_api.status import RunStatus
from finetune_operator import names, runs
from finetune_operator.builders.stage_job import measured_by
from finetune_operator.plan import Manifest, ObjectRef
from finetune_operator.stages.job_stage import advance, job_of, replace_job, soonest
from finetune_operator.stages.measurement import is_measured
from finetune_operator.stages.pipeline import PACKAGE
from finetune_operator.stages.promote import Promotion
from finetune_operator.stages.view import Step, View, is_deleting, reference
from finetune_operator.times import parse_time

# After the Job's own retries: long enough to cost nothing, short enough that a night's outage is over by the morning.
RETRY_SECONDS = 3600.0
HOPELESS = frozenset({FailureReason.EXPORT_UNSUPPORTED, FailureReason.ARTIFACT_INVALID})


def package(view: View, promotion: Promotion) -> Step:
    """Create the Job, wait for it, take its result, or say why it failed. `done` also when nothing is asked for."""
    run = promotion.run
    if not is_measured(view, run) or run.model is None:
        return Step(run, done=True)  # it is measured, perhaps anew; what was packaged stays
    promoted = runs.is_promoted(promotion.records, run.number)
    inputs = package_inputs(view.job.spec, promoted=promoted, measured=measured_by(run))
    job = job_of(view, run, Stage.PACKAGE)
    if inputs.is_empty:
        run = runs.without_time(run, Stage.PACKAGE).model_copy(update={"package": None})
        return Step(run, delete=_unwanted(view, job), done=True)
    step = _advance(view, _opened(run, promoted, package_hash(inputs)), job, package_hash(inputs))
    packaged = _own(step.run).model_copy(update={"failure": step.run.failure, "attempt": step.run.attempt})
    kept = {"failure": run.failure, "attempt": run.attempt, "package": packaged}
    return replace(step, run=step.run.model_copy(update=kept))


def _own(run: RunStatus) -> PackageStatus:
    return run.package or PackageStatus()


def _opened(run: RunStatus, promoted: bool, wanted: str) -> RunStatus:
    """The run as `advance` knows it, with the failure and the attempts of packaging in the place of its own."""
    packaged = _own(run)
    if packaged.settings_hash != wanted:
        run = runs.without_time(run, Stage.PACKAGE)
        packaged = packaged.model_copy(update={"failure": None})
    packaged = packaged.model_copy(update={"promoted": promoted, "settings_hash": wanted})
    return run.model_copy(update={"package": packaged, "failure": packaged.failure, "attempt": packaged.attempt})


def _advance(view: View, run: RunStatus, job: Manifest | None, wanted: str) -> Step:
    if job is not None and not is_deleting(job):
        other = names.annotation(job, names.ANNOTATION_PACKAGE_HASH) != wanted
        if other or _is_due(view, run):
            return replace_job(view, run, job)
    if job is None and run.failure is not None and not run.failure.waiting:
        run = run.model_copy(update={"failure": None})  # somebody removed the failed Job: it shall be tried again
    step = advance(view, run, PACKAGE)
    return replace(step, requeue_after=soonest(step.requeue_after, _retry_after(view, step.run)))


def _is_due(view: View, run: RunStatus) -> bool:
    after = _retry_after(view, run)
    return after is not None and after <= 0


def _retry_after(view: View, run: RunStatus) -> float | None:
    """Seconds until a failure is tried again; None: there is none, or trying again is useless."""
    failure = run.failure
    if failure is None or failure.waiting or failure.reason in HOPELESS:
        return None
    return RETRY_SECONDS - (view.now - parse_time(failure.since, view.now)).total_seconds()


def _unwanted(view: View, job: Manifest | None) -> tuple[ObjectRef, ...]:
    if job is None or is_deleting(job):
        return ()
    return (reference(job, view.job.metadata.namespace),)
