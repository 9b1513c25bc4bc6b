"""What the training pods reported last, cleaned and bounded, in memory only: the status is the record."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_api.interruptions import StopCosts
from finetune_api.status import Checkpoint, Progress
from finetune_operator.control.cache import Name
from finetune_operator.control.workqueue import WorkQueue
from finetune_operator.plan import ProgressReport
from finetune_operator.times import stamp

MAX_METRICS = 256  # KEP-2779's own bound
LARGEST_COUNT = 2**53  # what JSON numbers hold exactly

# Names that stock transformers sends, and those of our trainer.
NUMBERS = {
    "loss": "train_loss",
    "train_loss": "train_loss",
    "eval_loss": "eval_loss",
    "current_epoch": "epoch",
    "epoch": "epoch",
    "tokens_per_second": "tokens_per_second",
}
SECONDS = frozenset({"step_seconds", "save_seconds"})
COSTS = SECONDS | {"lost_steps"}  # what our trainer alone measures
COUNTS = {"current_step": "step", "total_steps": "total_steps", "checkpoint_step": "checkpoint_step"}


class ReportInvalidError(Exception):
    """The body is not a report; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Reported:
    """A report as sent, after cleaning."""

    percent: int | None
    values: Mapping[str, float]
    counts: Mapping[str, int]
    costs: Mapping[str, float] = field(default_factory=dict)


def clean_report(body: object) -> Reported:
    """The usable part of {"trainerStatus": {...}}. Unknown, unreadable and infinite values are left out.

    Raises ReportInvalidError when it is no such object or has too many metrics.
    """
    status = body.get("trainerStatus") if isinstance(body, dict) else None
    if not isinstance(status, dict):
        raise ReportInvalidError('the body must be {"trainerStatus": {...}}')
    listed = status.get("metrics") or []
    if not isinstance(listed, list) or len(listed) > MAX_METRICS:
        raise ReportInvalidError(f"trainerStatus.metrics must be a list of at most {MAX_METRICS}")
    values: dict[str, float] = {}
    counts: dict[str, int] = {}
    costs: dict[str, float] = {}
    for each in listed:
        name, number = (each.get("name"), _finite(each.get("value"))) if isinstance(each, dict) else (None, None)
        if not isinstance(name, str) or number is None:
            continue
        if name in NUMBERS:
            values[NUMBERS[name]] = number
        elif name in COUNTS and 0 <= number <= LARGEST_COUNT:
            counts[COUNTS[name]] = int(number)
        elif name in COSTS and number >= 0:
            costs[name] = number if name in SECONDS else int(number)
    percent = _finite(status.get("progressPercentage"))
    return Reported(None if percent is None else int(max(0, min(100, percent))), values, counts, costs)


def _finite(value: object) -> float | None:
    """KEP-2779 sends numbers as strings."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 64:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) <= LARGEST_COUNT else None


@dataclass(slots=True)
class _Known:
    run: int
    pod_uid: str
    first_step: int  # of this pod: what was resumed says nothing about the speed
    first_time: float
    report: ProgressReport
    asked_at: float = float("-inf")


class ProgressReports:
    """The last report of every job. A pass is asked for at most once an interval and job."""

    def __init__(
        self,
        queue: WorkQueue[Name],
        interval_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._queue = queue
        self._interval = interval_seconds
        self._monotonic = monotonic
        self._clock = clock
        self._known: dict[Name, _Known] = {}

    def report(self, name: Name) -> ProgressReport | None:
        known = self._known.get(name)
        return known.report if known else None

    def forget(self, name: Name) -> None:
        self._known.pop(name, None)

    def take(self, name: Name, run: int, pod_uid: str, reported: Reported) -> None:
        """Remembers a report. What it leaves out (a log line without eval_loss) stays as it was."""
        now = self._monotonic()
        before = self._known.get(name)
        if before and run < before.run:
            return  # a pod of a superseded run that is still ending
        same_run = before if before and before.run == run else None
        step = reported.counts.get("step", same_run.report.progress.step if same_run else 0)
        continued = same_run and same_run.pod_uid == pod_uid and step >= same_run.first_step
        first = (same_run.first_step, same_run.first_time) if same_run and continued else (step, now)
        old = same_run.report if same_run else None
        progress = self._merged(old.progress if old else Progress(), reported, step, first, now)
        checkpoint = self._checkpoint(old.checkpoint if old else None, reported)
        costs = (old and old.stop_costs) or StopCosts()
        costs = costs.model_copy(update=dict(reported.costs))
        known = _Known(run, pod_uid, *first, ProgressReport(run, progress, checkpoint, costs))
        known.asked_at = before.asked_at if before else known.asked_at
        self._known[name] = known
        self._ask(name, known, now)

    def _merged(self, old: Progress, reported: Reported, step: int, first: tuple[int, float], now: float) -> Progress:
        total = reported.counts.get("total_steps", old.total_steps)
        percent = reported.percent if reported.percent is not None else old.percent
        return old.model_copy(
            update={
                **reported.values,
                "percent": percent,
                "step": step,
                "total_steps": total,
                "remaining_seconds": remaining_seconds(step, total, first, now),
                "update_time": self._time(),
            }
        )

    def _checkpoint(self, old: Checkpoint | None, reported: Reported) -> Checkpoint | None:
        step = reported.counts.get("checkpoint_step")
        if step is None or (old and step <= old.step):
            return old
        return Checkpoint(step=step, time=self._time())

    def _ask(self, name: Name, known: _Known, now: float) -> None:
        wait = known.asked_at + self._interval - now
        if wait <= 0:
            known.asked_at = now
            self._queue.add(name)
        else:
            self._queue.add_after(name, wait)

    def _time(self) -> str:
        return stamp(self._clock())


def remaining_seconds(step: int, total: int, first: tuple[int, float], now: float) -> int | None:
    """Seconds to the end at the speed of this attempt, or None before it has a speed.

    transformers' own figure divides by all steps, also those that a resumed run did not do now.
    """
    done, elapsed = step - first[0], now - first[1]
    if total and step >= total:
        return 0
    if done <= 0 or elapsed <= 0 or total <= 0:
        return None
    return min(round((total - step) * elapsed / done), 10 * 365 * 86400)


def read_json(text: bytes) -> Any:
    """The body as JSON. Raises ReportInvalidError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ReportInvalidError("the body is not JSON") from None
