"""While many jobs begin, what a job is about to be told of may wait only where nothing would be forgotten by that."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest
from tests.played_applier import PlayedApplier, reconciler
from tests.simulator import make_job

from finetune_api.job import FineTuneJob
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.resources import FINE_TUNE_JOB
from finetune_operator.control.workqueue import CROWD, WorkQueue
from finetune_operator.plan import Observed, Plan
from finetune_operator.settings import Settings

NAME: Name = ("team-a", "travel")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [(0, ["children"]), (1, ["children", "status"])],
    ids=["the first", "a later one, which may be all that knows of a rollback"],
)
def test_in_a_burst_the_first_status_waits_and_no_other(seen: int, expected: list[str]) -> None:
    applier = PlayedApplier()

    def decide(job: FineTuneJob, observed: Observed, now: datetime, settings: Settings) -> Plan:
        return Plan(status=job.status, apply=({"kind": "Deployment", "metadata": {"name": "travel-serve"}},))

    async def one_pass() -> None:
        cache, queue = Cache(), WorkQueue[Name]()
        reconcile = reconciler(cache, queue, applier, decide)
        cache.store(FINE_TUNE_JOB, stored(seen))
        for number in range(CROWD):
            queue.add(("team-a", f"other-{number}"))
        await reconcile(NAME)

    asyncio.run(one_pass())
    assert applier.asked == expected


def stored(observed_generation: int) -> dict[str, Any]:
    body = make_job(uid="a").to_wire()
    status = {**body.get("status", {}), "observedGeneration": observed_generation}
    return {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}, "status": status}
