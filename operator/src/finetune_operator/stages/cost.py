"""What the run has cost by now: the meter is read in every pass, and written when there is something to write."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from finetune_api.conditions import Stage
from finetune_api.cost import CostStatus
from finetune_api.status import FineTuneJobStatus, RunRecord, RunStatus
from finetune_operator import names
from finetune_operator.builders.gang import members
from finetune_operator.builders.stage_job import gpus
from finetune_operator.diagnose.facts import gpus_of, held_since, held_until, job_condition, newest
from finetune_operator.metering import STALE_SECONDS, Hold, charged_late, estimated, metered, moment, summed
from finetune_operator.plan import Manifest
from finetune_operator.prices import Price
from finetune_operator.runs import is_done, stage_time
from finetune_operator.stages.view import View, owner_uids


def with_cost(view: View, run: RunStatus) -> RunStatus:
    """The run with what its pods have used until now. The server is not the run's: it answers as long as it is asked
    to, whatever was spent on training."""
    cost = run.cost if is_done(run, Stage.EVALUATE) else charged_late(run.cost, view.settings.prices)
    return run.model_copy(update={"cost": _metered(view, run.number, cost, moment(run.start_time))})


def with_costs_of_others(view: View, run: RunStatus, records: Iterable[RunRecord]) -> tuple[RunRecord, ...]:
    """The history, of which a superseded run's pod may still be saving its checkpoint."""
    return tuple(
        record
        if record.number == run.number or record.cost is None
        else record.model_copy(update={"cost": _metered(view, record.number, record.cost, 0)})
        for record in records
    )


def with_estimate(view: View, run: RunStatus) -> RunStatus:
    """The run with what its training will use on the GPUs that the job asks for now, at the price of those that its
    pods have been given, where a queue has chosen them."""
    count, price = training_gpus(view), _training_price(view, run)
    if run.estimate is None or not run.estimate.train_seconds or not count or price is None:
        return run
    currency = view.settings.prices.currency
    estimate = estimated(run.estimate.train_seconds, count, price, currency)
    cost = (run.cost or summed(CostStatus(), currency)).model_copy(update={"estimate": estimate})
    return run.model_copy(update={"cost": cost})


def _training_price(view: View, run: RunStatus) -> Price | None:
    """Of a GPU of the newest training pod, before the first one of what the job selects; None between two."""
    pods = (pod for pod in view.observed.pods if _is_of(pod, run.number))
    pod = newest(pod for pod in pods if names.label(pod, names.LABEL_STAGE) == Stage.TRAIN.value)
    if pod is not None:
        return view.settings.prices.of(view.job.spec.compute.gpu_resource, pod["spec"].get("nodeSelector") or {})
    return None if stage_time(run, Stage.TRAIN) is not None else selected_price(view)


def selected_price(view: View) -> Price:
    """Of a GPU of those that the job selects; a queue may choose others."""
    compute = view.job.spec.compute
    return view.settings.prices.of(compute.gpu_resource, compute.node_selector)


def held_price(view: View, run: RunStatus) -> Decimal | None:
    """What an hour of all GPUs costs that the run holds now; None: some of them have no price, or it holds none."""
    now = int(view.now.timestamp())
    held = [hold for hold in _holds(view, view.observed.pods, run.number) if hold.is_held(now)]
    amounts = [hold.price.amount * hold.gpus for hold in held if hold.price.amount is not None]
    return sum(amounts, Decimal(0)) if held and len(amounts) == len(held) else None


def with_training_cost(run: RunStatus) -> RunStatus:
    """The run whose training is done, with what that took, beside what was expected."""
    if run.cost is None or not run.cost.usage:
        return run
    return run.model_copy(update={"cost": run.cost.model_copy(update={"training": run.cost.whole})})


def training_gpus(view: View) -> int:
    """GPUs of all pods that train together."""
    return gpus(view.job, Stage.TRAIN) * members(view.job, Stage.TRAIN)


def settled(before: FineTuneJobStatus, after: FineTuneJobStatus) -> FineTuneJobStatus:
    """The status as it was, where only a meter went on: a status is not written for that. It is when GPUs are taken or
    given back, with whatever else is written, and otherwise each quarter of an hour."""
    known = _costs(before)
    now = _costs(after)
    if any(_tells(known.get(number), cost) for number, cost in now.items()):
        return after
    return before if _with_costs(after, known) == before else after


def _tells(old: CostStatus | None, new: CostStatus | None) -> bool:
    if new is None or new == old:
        return False
    if old is None or (old.gpus, old.estimate, old.training) != (new.gpus, new.estimate, new.training):
        return True
    return new.gpus == 0 or moment(new.time) - moment(old.time) >= STALE_SECONDS


def _costs(status: FineTuneJobStatus) -> dict[int, CostStatus | None]:
    runs: list[RunStatus | RunRecord] = [*status.runs, *([status.run] if status.run else [])]
    return {run.number: run.cost for run in runs}


def _with_costs(status: FineTuneJobStatus, costs: dict[int, CostStatus | None]) -> FineTuneJobStatus:
    run = status.run and status.run.model_copy(update={"cost": costs.get(status.run.number)})
    records = [record.model_copy(update={"cost": costs.get(record.number)}) for record in status.runs]
    return status.model_copy(update={"run": run, "runs": records})


def _metered(view: View, number: int, cost: CostStatus | None, since: int) -> CostStatus | None:
    own = _holds(view, view.observed.pods, number)
    # A Job that is gone may have been that of a deleted job of the same name, whose run had the same number.
    left = [hold for hold in _holds(view, view.observed.former_pods, number) if hold.made >= since]
    now, currency = int(view.now.timestamp()), view.settings.prices.currency
    return metered(cost, [*own, *left], now, currency, _suspended_at(view, number))


def _holds(view: View, pods: Iterable[Manifest], number: int) -> list[Hold]:
    found = (_hold(view, pod) for pod in pods if _is_of(pod, number))
    return [hold for hold in found if hold is not None]


def _is_of(pod: Manifest, number: int) -> bool:
    stage = names.label(pod, names.LABEL_STAGE)
    return names.run_of(pod) == number and stage != Stage.SERVE.value


def _hold(view: View, pod: Manifest) -> Hold | None:
    resource = view.job.spec.compute.gpu_resource
    count = gpus_of(pod, resource)
    if not count:
        return None
    start, end = held_since(pod), held_until(pod)
    return Hold(
        price=view.settings.prices.of(resource, pod["spec"].get("nodeSelector") or {}),
        gpus=count,
        made=moment(pod["metadata"].get("creationTimestamp")),
        start=moment(start) if start else None,
        end=moment(end) if end else None,
        resumed=_resumed(view, pod),
    )


def _resumed(view: View, pod: Manifest) -> int:
    """When the pod's Job was let go last, by its queue or by whoever had suspended it."""
    uids = owner_uids(pod)
    jobs = (job for job in view.observed.jobs.values() if job["metadata"].get("uid") in uids)
    return _changed(jobs, "False")


def _suspended_at(view: View, number: int) -> int:
    """Since when a Job of the run is held back."""
    return _changed((job for job in view.observed.jobs.values() if names.run_of(job) == number), "True")


def _changed(jobs: Iterable[Manifest], suspended: str) -> int:
    found = (job_condition(job, "Suspended", suspended) for job in jobs)
    return max((moment(condition.get("lastTransitionTime")) for condition in found if condition), default=0)
