"""What the API server refused is remembered for the job it was refused to, and no longer than that job is there."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest
from tests.played_applier import PlayedApplier, reconciler
from tests.simulator import make_job

from finetune_api.conditions import FailureReason
from finetune_api.job import FineTuneJob
from finetune_operator.control.apply import Applied
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.resources import FINE_TUNE_JOB
from finetune_operator.control.workqueue import WorkQueue
from finetune_operator.plan import ApplyFailure, Observed, Plan
from finetune_operator.settings import Settings

NAME: Name = ("team-a", "travel")
REFUSED = ApplyFailure(FailureReason.QUOTA_EXCEEDED, "exceeded quota: team-a")


def stored(uid: str = "a", **metadata: Any) -> dict[str, Any]:
    body = make_job(uid=uid).to_wire()
    return {**body, "metadata": {**body["metadata"], "resourceVersion": "1", **metadata}}


@pytest.mark.parametrize("end", ["vanished", "deleting", "replaced"])
def test_what_was_refused_goes_with_its_job(end: str) -> None:
    first_seen: list[ApplyFailure | None] = []  # in the first decision of each pass

    def decide(job: FineTuneJob, observed: Observed, now: datetime, settings: Settings) -> Plan:
        first_seen.append(observed.apply_failure)
        return Plan(status=job.status)

    async def passes() -> list[ApplyFailure | None]:
        cache, queue = Cache(), WorkQueue[Name]()
        reconcile = reconciler(cache, queue, PlayedApplier(Applied(refused=REFUSED)), decide)
        cache.store(FINE_TUNE_JOB, stored())
        await reconcile(NAME)
        await reconcile(NAME)
        if end == "deleting":
            cache.store(FINE_TUNE_JOB, stored(resourceVersion="2", deletionTimestamp="2026-01-01T00:00:00Z"))
            await reconcile(NAME)
        cache.drop(FINE_TUNE_JOB, NAME)
        if end == "vanished":
            await reconcile(NAME)
        cache.store(FINE_TUNE_JOB, stored("b" if end == "replaced" else "a"))
        before = len(first_seen)
        await reconcile(NAME)
        return [*first_seen[:3], first_seen[before]]

    # Refused at first, which the second decision of that pass knows, as does the next pass; then forgotten.
    assert asyncio.run(passes()) == [None, REFUSED, REFUSED, None]
