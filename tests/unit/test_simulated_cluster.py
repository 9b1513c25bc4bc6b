"""The simulated cluster is no kinder than a real one: it tells what the cache keeps, and retries by the Job's rules."""

from __future__ import annotations

import copy

import pytest
from tests.simulator import Cluster, make_job

from finetune_operator.control.cache import slim


def test_decisions_see_no_more_than_the_cache_keeps() -> None:
    cluster = Cluster(make_job()).run()
    observed = cluster.observed()
    everything = [*observed.jobs.values(), *observed.pods, *observed.config_maps.values(), *observed.services.values()]
    assert everything
    assert all(slim(copy.deepcopy(manifest)) == manifest for manifest in everything)
    assert not any("spec" in job for job in observed.jobs.values())


@pytest.mark.parametrize(("listed", "trainings"), [([10, 12], 1), ([10], 4)])
def test_what_is_tried_again_is_up_to_the_jobs_own_rules(listed: list[int], trainings: int) -> None:
    cluster = Cluster(make_job(), answer=lambda pod: (12, ""))
    cluster.run(until=lambda c: ("Job", "travel-r1-prepare") in c.objects)
    job = cluster.objects["Job", "travel-r1-prepare"]
    job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] = listed
    cluster.run()
    assert len(cluster.pods_of(job)) == trainings
