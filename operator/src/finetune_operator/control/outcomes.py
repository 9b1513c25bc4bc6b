"""What a written status adds to the counters: stages that succeeded, runs that ended."""

from __future__ import annotations

from datetime import datetime

from finetune_api.conditions import RunResult
from finetune_api.status import FineTuneJobStatus, RunStatus
from finetune_operator.control.metrics import RUNS, STAGE_SECONDS


def count_outcomes(before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
    """Counts what `after` has and `before` had not. Called once for each status that was written."""
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
