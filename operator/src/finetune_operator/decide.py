"""The whole behaviour of the control plane as one pure function: (job, observed, now, settings) -> Plan.

Level-triggered: it looks at what is there, never at what has just happened. So a pass that was cut short, a
pass too many, or events in another order end in the same place.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_api.conditions import ConditionType, RunResult, Stage
from finetune_api.job import FineTuneJob
from finetune_api.status import FineTuneJobStatus, Rollback, RunRecord, RunStatus
from finetune_operator import names, runs
from finetune_operator.builders.gang import members
from finetune_operator.conditions import Judgement, merge
from finetune_operator.diagnose import job_condition, to_failure
from finetune_operator.plan import Manifest, ObjectRef, Observed, Plan
from finetune_operator.settings import Settings
from finetune_operator.stages import dataset_poll, schedule
from finetune_operator.stages.approval import approval_in_vain, earlier_waits
from finetune_operator.stages.budget import used_up_after, within_budget
from finetune_operator.stages.claim import with_claim
from finetune_operator.stages.continuation import begin
from finetune_operator.stages.cost import settled, with_cost, with_costs_of_others
from finetune_operator.stages.job_stage import advance, soonest
from finetune_operator.stages.measurement import measures_otherwise, with_measurement
from finetune_operator.stages.package import package
from finetune_operator.stages.pipeline import STAGES, stages_of
from finetune_operator.stages.promote import Promotion, promote, put_back
from finetune_operator.stages.retention import retain
from finetune_operator.stages.serve import Serving, serve
from finetune_operator.stages.suspension import SUSPENDED, Pause
from finetune_operator.stages.view import Step, View, is_deleting, own_children, reference
from finetune_operator.transitions import events
from finetune_operator.verdicts import Outcome, judgements


def decide(job: FineTuneJob, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """What to write now. Applied and decided again it is empty, with the same status and no event."""
    if job.metadata.deletion_timestamp:
        return Plan(status=job.status)  # the garbage collector removes the children
    mine, foreign = own_children(job, observed)
    view = View(job, mine, foreign, now, settings)
    agenda = schedule.consult(view)
    polling = dataset_poll.consult(view, busy=agenda.occasion is not None)
    selection = runs.select(job, mine, view.time, agenda.occasion or polling.occasion)
    agenda = schedule.settled(agenda, view, selection.run)
    polling = dataset_poll.settled(polling, view, selection.run)
    records = with_costs_of_others(view, selection.run, selection.records)
    start = begin(view, with_cost(view, with_claim(view, selection.run)), records)
    step, stage = _run_stages(view, with_measurement(view, start.run)) if start.done else (start, Stage.PREPARE)
    promotion, serving = _take_over(view, step.run, records)
    packaging = package(view, promotion) if step.done else Step(promotion.run, done=True)
    run = _with_trouble(view, packaging.run, promotion, serving)
    served = [model.run for model in (serving.model, promotion.wanted) if model]
    retained = retain(view, run, promotion.records, served)
    if step.done and serving.settled and not packaging.done:
        stage = Stage.PACKAGE
    pause = packaging.pause if stage is Stage.PACKAGE else step.pause
    known = replace(promotion, records=retained.records)
    status = settled(job.status, _status(view, run, (stage, pause), known, serving, agenda, polling))
    parts = (step, serving, packaging, retained, polling)
    return Plan(
        status=status,
        apply=_once(tuple(manifest for part in parts for manifest in part.apply)),
        delete=(*(ref for part in parts for ref in part.delete), *_leftovers(view, run, status)),
        events=events(job.status, status),
        requeue_after=soonest(*(part.requeue_after for part in (*parts, agenda)), used_up_after(view, run)),
        awaits_turn=serving.awaits_turn,
        unread=step.unread or packaging.unread or polling.unread,
    )


def _run_stages(view: View, run: RunStatus) -> tuple[Step, Stage]:
    """As far as the stages that run as Jobs are done; the first that is not stops the pass."""
    for stage in stages_of(view.job.spec):
        step = advance(view, run, stage)
        if not step.done:
            return step, stage.stage
        run = step.run
    return Step(run, done=True), Stage.SERVE


def _take_over(view: View, run: RunStatus, records: tuple[RunRecord, ...]) -> tuple[Promotion, Serving]:
    """Which run shall answer, and its servers; those of the run before where the new ones have failed."""
    promotion = promote(view, run, records)
    serving = serve(view, promotion.run, promotion.wanted)
    back = put_back(view, promotion, serving.finding) if serving.failed and serving.finding else None
    return (promotion, serving) if back is None else (back, serve(view, back.run, back.wanted))


def _with_trouble(view: View, run: RunStatus, promotion: Promotion, serving: Serving) -> RunStatus:
    """Trouble of a stage comes first; without any that of serving shows, then that of packaging."""
    if run.failure is not None and run.failure.stage not in runs.BESIDE:
        return run
    before = view.job.status.run
    finding = promotion.finding or serving.finding
    failure = finding and to_failure(
        finding,
        Stage.SERVE,
        view.time,
        waiting=promotion.finding is None and not serving.failed,
        previous=before.failure if before else None,
    )
    if failure is None and serving.settled and run.package is not None:
        failure = run.package.failure
    return run.model_copy(update={"failure": failure})


def _status(
    view: View,
    run: RunStatus,
    reached: tuple[Stage, Pause | None],
    promotion: Promotion,
    serving: Serving,
    agenda: schedule.Agenda,
    polling: dataset_poll.Polling,
) -> FineTuneJobStatus:
    job, spec = view.job, view.job.spec
    stage, pause = reached
    outcome = Outcome(
        run,
        stage,
        promotion.wanted,
        promoted=runs.is_promoted(promotion.records, run.number),
        rollback=_rollback(promotion, run),
        serving=serving,
        replicas=spec.serving.replicas,
        claim=spec.output.claim_name,
        exports=bool(spec.output.exports or spec.tracking.trackers),
        judge=spec.evaluation.judge is not None,
        suspend=spec.suspend,
        pause=pause,
        budget=within_budget(view, run),
        asides=_asides(view, run, promotion.records, (*agenda.judgements, *polling.judgements)),
        earlier=earlier_waits(run, promotion.wanted, promotion.records),
    )
    said = [*judgements(outcome), *agenda.judgements, *polling.judgements]
    conditions = merge(job.status.conditions, said, view.time, job.metadata.generation)
    return FineTuneJobStatus(
        observed_generation=job.metadata.generation,
        conditions=conditions,
        stage=stage if stage is not Stage.SERVE or promotion.wanted else stages_of(spec)[-1].stage,
        model_name=names.base_name(spec),
        percent=_percent(run, stage),
        run=run,
        model=serving.model,
        endpoint=serving.endpoint,
        schedule=agenda.status,
        dataset_poll=polling.status,
        runs=list(promotion.records),
    )


def _asides(
    view: View, run: RunStatus, records: tuple[RunRecord, ...], triggers: tuple[Judgement, ...]
) -> tuple[str, ...]:
    """What concerns no run and would be seen by nobody who reads one message only: an approval that approves nothing, a
    schedule or looks at the data that do not work."""
    looks = ConditionType.DATASET_POLLED
    troubled = (
        f"Dataset poll: {text}" if kind is looks else text
        for kind, truth, reason, text in triggers
        if truth == "False" and reason != SUSPENDED
    )
    return tuple(text for text in (approval_in_vain(view.job.spec.promotion.approved, run, records), *troubled) if text)


def _rollback(promotion: Promotion, run: RunStatus) -> Rollback | None:
    record = runs.record_of(promotion.records, run.number)
    return record.rollback if record and record.result is RunResult.ROLLED_BACK else None


def _percent(run: RunStatus, stage: Stage) -> str:
    return f"{STAGES[stage].percent(run) if stage in STAGES else 100}%"


def _leftovers(view: View, run: RunStatus, status: FineTuneJobStatus) -> tuple[ObjectRef, ...]:
    """Jobs of other runs that still run, a measurement that is not wanted any more, and the children of runs that are
    forgotten."""
    known = {run.number, *(record.number for record in status.runs)} | ({status.model.run} if status.model else set())
    namespace = view.job.metadata.namespace
    result = []
    for job in view.observed.jobs.values():
        number = names.run_of(job)
        if number is None or is_deleting(job):
            continue
        if number == run.number:
            unwanted = runs.is_done(run, Stage.EVALUATE) and measures_otherwise(view, run, job)
        else:
            unwanted = number not in known or not (job_condition(job, "Complete") or job_condition(job, "Failed"))
        if unwanted:
            result.append(reference(job, namespace))
    for service in view.observed.services.values():
        unwanted = names.label(service, names.LABEL_STAGE) == Stage.TRAIN.value and not _finds_peers(view, run)
        if unwanted and not is_deleting(service):
            result.append(reference({"apiVersion": "v1", "kind": "Service", **service}, namespace))
    for config_map in view.observed.config_maps.values():
        number = names.run_of(config_map)
        if number is not None and number not in known and not is_deleting(config_map):
            result.append(reference({"apiVersion": "v1", "kind": "ConfigMap", **config_map}, namespace))
    return tuple(result)


def _finds_peers(view: View, run: RunStatus) -> bool:
    """Whether pods that train together are there, or are made now."""
    return not runs.is_done(run, Stage.TRAIN) and members(view.job, Stage.TRAIN) > 1


def _once(manifests: tuple[Manifest, ...]) -> tuple[Manifest, ...]:
    """Each object once; a run's ConfigMap may be wanted by a stage and by the server."""
    return tuple({(m["kind"], m["metadata"]["name"]): m for m in manifests}.values())
