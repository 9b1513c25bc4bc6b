"""While many jobs begin, what a job is about to be told of may wait only where nothing would be forgotten by that."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest
from tests.simulator import make_job

from finetune_api.job import FineTuneJob
from finetune_operator.control.apply import Applied
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.last_words import LastWords
from finetune_operator.control.progress import ProgressReports
from finetune_operator.control.reconcile import Reconciler
from finetune_operator.control.resources import FINE_TUNE_JOB
from finetune_operator.control.workqueue import CROWD, WorkQueue
from finetune_operator.plan import Observed, Plan
from finetune_operator.settings import Settings

NAME: Name = ("team-a", "travel")


class Recording:
    """An Applier that writes down what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def children(self, uid: str, manifests: object) -> Applied:
        self.asked.append("children")
        return Applied()

    async def status(self, job: object, status: object) -> bool:
        self.asked.append("status")
        return False

    async def delete(self, refs: object) -> None:
        return None


@pytest.mark.parametrize(
    ("seen", "expected"),
    [(0, ["children"]), (1, ["children", "status"])],
    ids=["the first", "a later one, which may be all that knows of a rollback"],
)
def test_in_a_burst_the_first_status_waits_and_no_other(seen: int, expected: list[str]) -> None:
    applier = Recording()

    def decide(job: FineTuneJob, observed: Observed, now: datetime, settings: Settings) -> Plan:
        return Plan(status=job.status, apply=({"kind": "Deployment", "metadata": {"name": "travel-serve"}},))

    async def one_pass() -> None:
        cache, queue = Cache(), WorkQueue[Name]()
        reconcile = Reconciler(
            cache=cache,
            queue=queue,
            applier=applier,  # type: ignore[arg-type]
            decide=decide,
            settings=Settings(),
            progress=ProgressReports(queue, 10),
            last_words=LastWords(applier, cache),  # type: ignore[arg-type]
        )
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
