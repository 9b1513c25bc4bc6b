"""What a written status adds to the counters: stages that succeeded, runs that ended."""

from __future__ import annotations

from datetime import datetime

from finetune_api.conditions import FailureReason, RunResult
from finetune_api.cost import CostStatus
from finetune_api.status import FineTuneJobStatus, RunStatus
from finetune_operator.control.metrics import BUDGET_STOPS, COST, GPU_SECONDS, RUNS, STAGE_SECONDS


def count_outcomes(namespace: str, before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
    """Counts what `after` has and `before` had not. Called once for each status that was written."""
    _count_costs(namespace, before, after)
    if _is_held(after) and not _is_held(before):
        BUDGET_STOPS.labels(namespace).inc()
    known = {record.number: record.result for record in before.runs}
    for record in after.runs:
        rolled_back = record.result is RunResult.ROLLED_BACK is not known.get(record.number)
        if record.number not in known or rolled_back:
            RUNS.labels(record.result).inc()
    done = _completed(before.run)
    for key, seconds in _completed(after.run).items():
        if key not in done:
            STAGE_SECONDS.labels(key[1]).observe(seconds)


def _completed(run: RunStatus | None) -> dict[tuple[int, str], float]:
    """(run, stage) -> seconds, for the stages that have ended."""
    return {
        (run.number, each.stage): (
            datetime.fromisoformat(each.completion_time) - datetime.fromisoformat(each.start_time)
        ).total_seconds()
        for each in (run.stages if run else ())
        if run and each.start_time and each.completion_time
    }


def _count_costs(namespace: str, before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
    old = _costs(before)
    for number, cost in _costs(after).items():
        known = old.get(number, CostStatus())
        GPU_SECONDS.labels(namespace).inc(max(0, cost.gpu_seconds - known.gpu_seconds))
        for currency in {use.currency for use in cost.usage if use.currency}:
            more = cost.spent(currency) - known.spent(currency)
            COST.labels(namespace, currency).inc(max(0.0, float(more)))


def _costs(status: FineTuneJobStatus) -> dict[int, CostStatus]:
    runs = [(record.number, record.cost) for record in status.runs]
    runs += [(status.run.number, status.run.cost)] if status.run else []
    return {number: cost for number, cost in runs if cost is not None and cost.usage}


def _is_held(status: FineTuneJobStatus) -> bool:
    failure = status.run.failure if status.run else None
    return failure is not None and failure.reason is FailureReason.BUDGET_EXCEEDED
