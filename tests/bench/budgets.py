"""The budgets of the control plane, and which of them a measurement keeps. A budget is no test: machines differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where a figure stands in the results of one size -> at most. Seconds and milliseconds are those of a calm machine of
# two cores; counts and seconds of CPU hold anywhere.
BUDGETS: Mapping[str, float] = {
    "one_by_one.first_job.p50_ms": 25,
    "one_by_one.first_job.p99_ms": 50,
    "burst.writes_per_job": 4,  # ConfigMap, Job, status, and one Event
    "burst.reads_per_pass": 0,
    "burst.passes_per_job": 3,
    "life.writes_per_job.configmaps": 1,
    "life.writes_per_job.jobs": 3,
    "life.writes_per_job.deployments": 1,
    "life.writes_per_job.services": 1,
    "life.writes_per_job.finetunejobs/status": 8,
    "life.writes_per_job.events": 8,
    "idle.writes": 0,
    "idle.reads_beside_lists": 0,
    "restart.writes": 0,
}
BY_SIZE: Mapping[int, Mapping[str, float]] = {
    1000: {
        "burst.last_first_job_seconds": 10,
        "memory.resident_mib": 120,
        "restart.every_job_passed_seconds": 5,
    },
    5000: {"memory.resident_mib": 250, "restart.every_job_passed_seconds": 30},
}


def judge(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each budget beside what was measured; what was not measured is left out."""
    budgets = {**BUDGETS, **BY_SIZE.get(int(found["jobs"]), {})}
    rows = ((place, limit, figure(found, place)) for place, limit in budgets.items())
    return [
        {"figure": place, "budget": limit, "measured": value, "kept": value <= limit}
        for place, limit, value in rows
        if value is not None
    ]


def figure(found: Mapping[str, Any], place: str) -> float | None:
    """The number at a dotted place, or None."""
    value: Any = found
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
