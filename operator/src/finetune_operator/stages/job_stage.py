"""What all stages but Serve have in common: a Job that must leave a summary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from finetune_api.conditions import ConditionType, FailureReason, Stage
from finetune_api.reports import Summary
from finetune_api.status import Failure, RunStatus
from finetune_operator import names
from finetune_operator.builders.gang import members, peers_service
from finetune_operator.builders.run_config_map import run_config_map
from finetune_operator.builders.shape import SHAPES
from finetune_operator.builders.stage_job import failed_inputs_hash, inputs_hash, job_name, stage_job
from finetune_operator.diagnose import (
    Finding,
    current,
    ever_ran,
    has_failed,
    held_back,
    is_explained,
    is_over,
    job_condition,
    job_failure,
    last_summary,
    look_again_after,
    lost_node,
    pod_trouble,
    refused_pod,
    spent,
    summary_of,
    to_failure,
)
from finetune_operator.interruption import newer, with_costs, with_grace, with_grace_of, with_longer_grace
from finetune_operator.plan import Manifest
from finetune_operator.runs import ended_with_failure, is_done, stage_time, with_time, without_time
from finetune_operator.stages.budget import out_of_budget
from finetune_operator.stages.cost import with_estimate
from finetune_operator.stages.measurement import measures_otherwise
from finetune_operator.stages.settling import settled_after
from finetune_operator.stages.suspension import Pause
from finetune_operator.stages.view import Step, View, is_deleting, owner_uids, reference

FOREIGN_SECONDS = 5.0  # how soon to look again whether the garbage collector has removed a predecessor's child


@dataclass(frozen=True, slots=True)
class Words:
    """How a stage is told: the reason and the sentence while it goes on; the condition that it makes true, the reason
    and the sentence of that, and the Event. `begun` is an Event of its beginning; `again` the reason and the sentence
    while its result, which is there, is being made anew."""

    doing: str
    sentence: str
    condition: ConditionType
    reached: str
    result: Callable[[RunStatus], str]
    event: str
    begun: tuple[str, str] | None = None
    again: Callable[[RunStatus], tuple[str, str] | None] = lambda run: None


@dataclass(frozen=True, slots=True)
class JobStage:
    """A stage as data: its name, its words, how much of the training is done in it (percent), what its summary brings
    (None: it lacks the stage's part), what is live while it runs, and what of a failed stage's summary is worth
    keeping. In what its pod differs says `builders/shape.py`."""

    stage: Stage
    words: Words
    percent: Callable[[RunStatus], int]
    absorb: Callable[[View, RunStatus, Summary], RunStatus | None]
    live: Callable[[View, RunStatus], tuple[RunStatus, float | None]] | None = None
    salvage: Callable[[View, RunStatus, Summary], RunStatus] | None = None


def advance(view: View, run: RunStatus, stage: JobStage) -> Step:
    """One look at the stage: create its Job, wait for it, take its result, or say why it failed."""
    if is_done(run, stage.stage):
        return Step(run, done=True)
    job = job_of(view, run, stage.stage)
    run = run if job is None else with_grace_of(run, job)
    if stage.stage is Stage.TRAIN and (job is None or not _inputs_changed(view, job)):
        run = with_estimate(view, run)
    spent_up = None if view.job.spec.suspend else out_of_budget(view, run, stage.stage)
    held = view.job.spec.suspend or spent_up is not None
    if job is not None and is_deleting(job):
        pods = pods_of(view, job)
        run = _told(
            view, with_last_words(run, pods), stage.stage, lost_node(pods, view.now) or (spent_up if held else None)
        )
        return Step(run, pause=Pause.ENDING if held else None)
    if job is not None and measures_otherwise(view, run, job):
        return replace_job(view, without_time(run, stage.stage), job)
    run = _counted_anew(run, stage.stage)
    if ended_with_failure(run, stage.stage):
        again = _begun_again(view, run, stage.stage, job)
        if again is None:
            return _try_again(view, run, job)
        run = again
    if held and (job is None or not _has_ended(job)):
        step = _hold(view, run, job)
        return replace(step, run=_told(view, step.run, stage.stage, spent_up))
    if job is None and (left := settled_after(view, run, stage.stage)) is not None:
        return Step(run.model_copy(update={"failure": None}), pause=Pause.SETTLING, requeue_after=left)
    if job is None:
        return _blocked(view, run, stage.stage) or _create(view, run, stage.stage)
    if job_condition(job, "Complete") or job_condition(job, "SuccessCriteriaMet"):
        return _collect(view, run, stage, job)
    if job_condition(job, "Failed") or job_condition(job, "FailureTarget"):
        return _fail(view, run, stage, job)
    return _watch(view, run, stage, job)


def _counted_anew(run: RunStatus, stage: Stage) -> RunStatus:
    """Each stage counts its own attempts, also one whose Job was made before the status could tell of it."""
    return run if stage_time(run, stage) else run.model_copy(update={"attempt": 1})


def _has_ended(job: Manifest) -> bool:
    return any(job_condition(job, kind) for kind in ("Complete", "SuccessCriteriaMet", "Failed", "FailureTarget"))


def _hold(view: View, run: RunStatus, job: Manifest | None) -> Step:
    """The Job is deleted, and no other is made. Its pods have their grace period to save a checkpoint."""
    if job is not None:
        return replace(replace_job(view, with_last_words(run, pods_of(view, job)), job), pause=Pause.ENDING)
    run = run.model_copy(update={"failure": None})
    if _former_pod(view, run) is not None:
        return Step(run, pause=Pause.ENDING, requeue_after=FOREIGN_SECONDS)
    return Step(run, pause=Pause.HELD)


def _told(view: View, run: RunStatus, stage: Stage, finding: Finding | None) -> RunStatus:
    """The run with why it is held; the user's own wish needs no words."""
    if finding is None:
        return run
    previous = view.job.status.run.failure if view.job.status.run else None
    failure = to_failure(finding, stage, view.time, waiting=True, previous=previous)
    return run.model_copy(update={"failure": failure})


def with_last_words(run: RunStatus, pods: list[Manifest]) -> RunStatus:
    """The run with the checkpoint that an interrupted pod says it has saved, and with what that took."""
    members = current(pods)
    summary = last_summary(members) if all(is_over(pod) for pod in members) else None
    if summary is None or summary.ok or summary.run != run.number:
        return run
    run = run.model_copy(update={"checkpoint": newer(summary.checkpoint, run.checkpoint)})
    return with_costs(run, summary.stop_costs)


def pods_of(view: View, job: Manifest) -> list[Manifest]:
    """The Job's pods, by their owner: labels can be anybody's."""
    return [pod for pod in view.observed.pods if job["metadata"]["uid"] in owner_uids(pod)]


def job_of(view: View, run: RunStatus, stage: Stage) -> Manifest | None:
    """The run's Job of the stage, whatever its name: that depends on how many pods it was made for."""
    wanted = (str(run.number), stage.value)
    found = (
        job
        for job in view.observed.jobs.values()
        if (names.label(job, names.LABEL_RUN), names.label(job, names.LABEL_STAGE)) == wanted
    )
    return next(found, None)


def _peers(view: View, stage: Stage) -> tuple[Manifest, ...]:
    """The Service by which pods that work together find each other, where it is missing."""
    if members(view.job, stage) == 1:
        return ()
    service = peers_service(view.job)
    return () if service["metadata"]["name"] in view.observed.services else (service,)


def ensure_config_map(view: View, run: RunStatus) -> tuple[Manifest, ...]:
    """The run's ConfigMap where it is missing. An existing one is never touched: it is immutable."""
    if names.run_name(view.job.metadata.name, run.number) in view.observed.config_maps:
        return ()
    return (run_config_map(view.job, run, view.settings),)


def _create(view: View, run: RunStatus, stage: Stage) -> Step:
    run = with_time(run, stage, start=view.time)
    run = with_grace(run, view.settings) if SHAPES[stage].saves else run
    made = stage_job(view.job, run, stage, view.settings)
    run = run.model_copy(update={"failure": _refusal(view, run, stage) or _queued(view, run, stage, made)})
    manifests = (*ensure_config_map(view, run), *_peers(view, stage), made)
    return Step(run, apply=manifests)


def _queued(view: View, run: RunStatus, stage: Stage, made: Manifest) -> Failure | None:
    """A Job that is made for a queue does not run yet."""
    finding = held_back(made, None)
    return to_failure(finding, stage, view.time, waiting=True, previous=run.failure) if finding else None


def _refusal(view: View, run: RunStatus, stage: Stage) -> Failure | None:
    """The API server did not take what we wrote. The control plane tries again, with growing pauses."""
    refused = view.observed.apply_failure
    if refused is None:
        return None
    finding = Finding(refused.reason, refused.message)
    return to_failure(finding, stage, view.time, waiting=True, previous=run.failure)


def _blocked(view: View, run: RunStatus, stage: Stage) -> Step | None:
    """Waits while something of a predecessor is in the way: mostly what the garbage collector still removes."""
    finding = _taken_name(view, run, stage) or _former_pod(view, run)
    if finding is None:
        return None
    failure = to_failure(finding, stage, view.time, waiting=True, previous=run.failure)
    return Step(run.model_copy(update={"failure": failure}), requeue_after=FOREIGN_SECONDS)


def _taken_name(view: View, run: RunStatus, stage: Stage) -> Finding | None:
    config_map = names.run_name(view.job.metadata.name, run.number)
    wanted = {f"Job/{job_name(view.job, run, stage)}", f"ConfigMap/{config_map}"}
    wanted |= {f"Service/{each['metadata']['name']}" for each in _peers(view, stage)}
    taken = sorted(wanted & view.foreign)
    if not taken:
        return None
    text = f"{', '.join(taken)} is not this job's, perhaps an earlier one's of the same name, and is still there."
    return Finding(FailureReason.NAME_CONFLICT, text)


def _former_pod(view: View, run: RunStatus) -> Finding | None:
    """A pod outlives its Job when that was deleted in the background. Two of them must not write to one folder, which
    has the run's number in its name."""
    left = [
        pod["metadata"]["name"]
        for pod in view.observed.former_pods
        if names.run_of(pod) == run.number and not is_over(pod)
    ]
    if not left:
        return None
    text = f"An earlier Job is gone, but not its pod {', '.join(sorted(left)[:3])}, which may still write to the run."
    return Finding(FailureReason.FORMER_POD, text)


def _try_again(view: View, run: RunStatus, job: Manifest | None) -> Step:
    """A failed stage gets another try when the user changed what it runs on, say its memory."""
    return replace_job(view, run, job) if job is not None and _inputs_changed(view, job) else Step(run)


def _begun_again(view: View, run: RunStatus, stage: Stage, job: Manifest | None) -> RunStatus | None:
    """The run at another try of its failed stage, whose Job is gone and which is wanted otherwise now. A Job of a later
    attempt than the run's is that try: the pass that made it did not live to tell of it."""
    claim: str | None
    if job is None:
        if not _is_wanted_otherwise(view, run, stage):
            return None
        attempt, claim = run.attempt + 1, view.job.spec.output.claim_name
    else:
        attempt, claim = _attempt_of(job), names.annotation(job, names.ANNOTATION_CLAIM)
        if attempt <= run.attempt:
            return None
    if stage is not Stage.PREPARE or claim is None:
        claim = run.claim_name
    return run.model_copy(update={"failure": None, "attempt": attempt, "claim_name": claim})


def _is_wanted_otherwise(view: View, run: RunStatus, stage: Stage) -> bool:
    """Whether the user changed what the stage runs on since it failed, where its Job cannot tell any more: somebody
    deleted it, or the job was restored without children."""
    known = run.failure.inputs_hash if run.failure else ""
    return known not in ("", failed_inputs_hash(view.job, stage))


def _inputs_changed(view: View, job: Manifest) -> bool:
    stage = Stage(names.label(job, names.LABEL_STAGE) or "")
    if names.annotation(job, names.ANNOTATION_INPUTS_HASH) not in (None, inputs_hash(view.job, stage)):
        return True
    # The first stage can begin on another claim; the later ones need what the first one wrote.
    first = stage is Stage.PREPARE
    return first and names.annotation(job, names.ANNOTATION_CLAIM) not in (None, view.job.spec.output.claim_name)


def replace_job(view: View, run: RunStatus, job: Manifest) -> Step:
    """Delete now; the Job is created anew when it and its pods are gone."""
    attempt = max(run.attempt, _attempt_of(job) + 1)
    run = run.model_copy(update={"attempt": attempt, "failure": None})
    return Step(run, delete=(reference(job, view.job.metadata.namespace),))


def _collect(view: View, run: RunStatus, stage: JobStage, job: Manifest) -> Step:
    pods = pods_of(view, job)
    summary = summary_of(pods)
    absorbed = stage.absorb(view, run, summary) if summary else None
    if absorbed is not None:
        completed = (job.get("status") or {}).get("completionTime") or view.time
        absorbed = with_time(absorbed, stage.stage, start=view.time, completion=completed)
        return Step(absorbed.model_copy(update={"failure": None}), done=True)
    if is_unread(view, job):
        return Step(run, unread=True)
    if _attempt_of(job) > view.settings.backoff_limit:
        text = f"{stage.stage} succeeded, but none of its pods left a summary in its termination message."
        return _end(view, run, stage.stage, Finding(FailureReason.SYSTEM_FAULT, text))
    # The pod is gone and its summary with it. The stage finds its report on the volume and says it again.
    return replace_job(view, run, job)


def is_unread(view: View, job: Manifest) -> bool:
    """Whether what is missing may only not have been seen yet: Jobs and pods come over different watches."""
    return job["metadata"].get("uid") in view.observed.unread


def _fail(view: View, run: RunStatus, stage: JobStage, job: Manifest) -> Step:
    pods = pods_of(view, job)
    condition = job_condition(job, "Failed") or job_condition(job, "FailureTarget") or {}
    if condition.get("reason") != "DeadlineExceeded" and is_unread(view, job) and not is_explained(job, pods):
        return Step(run, unread=True)
    if _inputs_changed(view, job):
        return replace_job(view, run, job)
    run = with_time(run, stage.stage, start=view.time)  # it began and failed while nobody looked
    summary = last_summary(pods)
    if summary is not None and stage.salvage is not None:
        run = stage.salvage(view, run, summary)
    return _end(view, run, stage.stage, job_failure(job, pods, view.now))


def _end(view: View, run: RunStatus, stage: Stage, finding: Finding) -> Step:
    failure = to_failure(finding, stage, view.time, waiting=False, previous=run.failure)
    failure = failure.model_copy(update={"inputs_hash": failed_inputs_hash(view.job, stage)})
    return Step(run.model_copy(update={"failure": failure}))


def _watch(view: View, run: RunStatus, stage: JobStage, job: Manifest) -> Step:
    pods = pods_of(view, job)
    if not any(ever_ran(pod) for pod in pods) and _is_outdated(view, run, stage.stage, job):
        return replace_job(view, run, job)
    if pods and all(has_failed(pod) for pod in pods) and _inputs_changed(view, job):
        return replace_job(view, run, job)  # what it waits to be tried again with is not wanted any more
    run = with_last_words(with_time(run, stage.stage, start=view.time), pods)
    name = job["metadata"]["name"]
    finding = held_back(job, view.observed.workloads.get(name))
    if finding is None:
        finding = refused_pod(view.observed.refusals.get(name), pods, view.now) or pod_trouble(pods, view.now)
    failure = finding and to_failure(finding, stage.stage, view.time, waiting=True, previous=run.failure)
    run = run.model_copy(update={"failure": failure, "attempt": _attempt(run, job, pods)})
    step = Step(run, apply=_peers(view, stage.stage), requeue_after=look_again_after(pods, view.now))
    if stage.live is None:
        return step
    run, again = stage.live(view, run)
    return replace(step, run=run, requeue_after=soonest(step.requeue_after, again))


def _is_outdated(view: View, run: RunStatus, stage: Stage, job: Manifest) -> bool:
    """Whether the Job is no longer what we would create: the user changed compute, or the image was corrected."""
    attempt = _attempt_of(job)
    run = with_longer_grace(run, view.settings) if SHAPES[stage].saves else run
    wanted = stage_job(view.job, run.model_copy(update={"attempt": attempt}), stage, view.settings)
    return names.annotation(job, names.ANNOTATION_SPEC_HASH) != names.annotation(wanted, names.ANNOTATION_SPEC_HASH)


def _attempt_of(job: Manifest) -> int:
    """With which attempt of its stage the Job began."""
    return names.number(names.label(job, names.LABEL_ATTEMPT)) or 1


def _attempt(run: RunStatus, job: Manifest, pods: list[Manifest]) -> int:
    """The Job's own attempt and one more for each generation of its pods that failed or is being deleted."""
    failed = int((job.get("status") or {}).get("failed") or 0)
    return max(run.attempt, _attempt_of(job) + spent(pods, failed))


def soonest(*times: float | None) -> float | None:
    """The smallest of the given seconds, or None when there is none."""
    return min((time for time in times if time is not None), default=None)
