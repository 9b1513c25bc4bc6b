"""`spec.budget`: a run that has used it is held with its checkpoint, as by spec.suspend, until there is more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal

from finetune_api.conditions import ConditionType, FailureReason, Stage
from finetune_api.cost import CostStatus
from finetune_api.spec import BudgetSpec
from finetune_api.status import RunStatus
from finetune_operator.builders.stage_job import gpus
from finetune_operator.conditions import Judgement
from finetune_operator.finding import Finding
from finetune_operator.metering import hours, money
from finetune_operator.runs import stage_time
from finetune_operator.stages.cost import held_price, selected_price
from finetune_operator.stages.view import View

HELD = frozenset({FailureReason.BUDGET_EXCEEDED, FailureReason.PRICE_MISSING})
LESS = "or train less: fewer epochs or examples"


def out_of_budget(view: View, run: RunStatus, stage: Stage) -> Finding | None:
    """Why the stage must not take GPUs, or None. Prepare takes none, but what cannot be kept at all is said at once."""
    if view.job.spec.budget is None or not (stage is Stage.PREPARE or gpus(view.job, stage)):
        return None
    finding = next(_findings(view, run, view.job.spec.budget), None)
    is_later = finding is not None and stage is Stage.PREPARE and finding.reason is not FailureReason.PRICE_MISSING
    return None if is_later else finding


def within_budget(view: View, run: RunStatus) -> Judgement | None:
    """The condition that is there while there is a budget."""
    budget = view.job.spec.budget
    if budget is None:
        return None
    finding = next(_findings(view, run, budget), None)
    if finding is not None:
        return ConditionType.WITHIN_BUDGET, "False", finding.reason, finding.message
    bounds = [f"{budget.max_gpu_hours} GPU hours"] if budget.max_gpu_hours is not None else []
    bounds += [f"{budget.max_cost} {view.settings.prices.currency}"] if budget.max_cost is not None else []
    return ConditionType.WITHIN_BUDGET, "True", "WithinBudget", f"Each run may use {' and '.join(bounds)}."


def used_up_after(view: View, run: RunStatus) -> float | None:
    """Seconds until the budget is used up, with the GPUs that are held now."""
    budget, cost = view.job.spec.budget, run.cost
    if budget is None or cost is None or not cost.gpus:
        return None
    left = []
    if budget.gpu_seconds is not None:
        left.append((budget.gpu_seconds - cost.gpu_seconds) / cost.gpus)
    if budget.cost is not None and (an_hour := held_price(view, run)):
        left.append((budget.cost - cost.spent(view.settings.prices.currency)) * 3600 / an_hour)
    soonest = math.ceil(min(left)) if left else 0
    return float(soonest) if soonest > 0 else None


def _findings(view: View, run: RunStatus, budget: BudgetSpec) -> Iterator[Finding]:
    cost, currency = run.cost or CostStatus(), view.settings.prices.currency
    yield from _unpriced(view, cost, budget)
    spent = cost.spent(currency)
    if budget.gpu_seconds is not None and cost.gpu_seconds >= budget.gpu_seconds:
        yield _used(run, f"{hours(cost.gpu_seconds)} GPU hours are used", "maxGpuHours", str(budget.max_gpu_hours))
    if budget.cost is not None and spent >= budget.cost:
        yield _used(run, f"{money(spent)} {currency} are spent", "maxCost", str(budget.max_cost))
    if stage_time(run, Stage.TRAIN) is None and cost.estimate is not None:
        yield from _expected(cost, budget)


def _unpriced(view: View, cost: CostStatus, budget: BudgetSpec) -> Iterator[Finding]:
    """That a bound in money cannot be kept."""
    if budget.cost is None:
        return
    compute, prices = view.job.spec.compute, view.settings.prices
    # A queue may choose GPUs that have one. If it does not, that shows as soon as hours without a price are used.
    if selected_price(view).amount is None and not (compute.queue_name and prices.gpu_hour):
        text = f"budget.maxCost is {budget.max_cost}, but the platform has no price for {compute.gpu_resource}."
        yield Finding(FailureReason.PRICE_MISSING, text)
    elif cost.unpriced_gpu_hours is not None:
        text = f"{cost.unpriced_gpu_hours} GPU hours of the run have no price, so that budget.maxCost cannot be kept."
        yield Finding(FailureReason.PRICE_MISSING, text)


def _expected(cost: CostStatus, budget: BudgetSpec) -> Iterator[Finding]:
    """That the training would need more, before it begins."""
    estimate = cost.estimate
    if estimate is None:
        return
    if budget.max_gpu_hours is not None and Decimal(estimate.gpu_hours) > Decimal(budget.max_gpu_hours):
        yield _too_much(f"{estimate.gpu_hours} GPU hours", "maxGpuHours", str(budget.max_gpu_hours), estimate.gpu_hours)
    if budget.cost is not None and estimate.amount is not None and Decimal(estimate.amount) > budget.cost:
        text = f"{estimate.amount} {estimate.currency}"
        yield _too_much(text, "maxCost", str(budget.max_cost), estimate.amount)


def _used(run: RunStatus, what: str, field: str, bound: str) -> Finding:
    where = f" from the checkpoint of step {run.checkpoint.step}" if run.checkpoint else ""
    return Finding(
        FailureReason.BUDGET_EXCEEDED,
        f"{what}; budget.{field} is {bound}.",
        f"Raise budget.{field} to go on{where}, {LESS}.",
    )


def _too_much(what: str, field: str, bound: str, needed: str) -> Finding:
    return Finding(
        FailureReason.BUDGET_EXCEEDED,
        f"The training is estimated at {what}; budget.{field} is {bound}. No GPU was taken.",
        f"Raise budget.{field} to {needed} or more, {LESS}.",
    )
