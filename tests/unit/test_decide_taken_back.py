"""Commits that are taken back: what answers then, and what becomes of a training that was interrupted."""

from __future__ import annotations

from typing import Any

import pytest
from tests.scenarios import removes
from tests.simulator import Cluster, make_job
from tests.unit.test_decide_runs import EPOCHS, endpoint_run, losing_after, number, results

from finetune_api.conditions import RunResult, Stage
from finetune_operator.settings import Settings
from finetune_operator.stages.retention import TAKEN_BACK


def test_what_a_revert_took_back_does_not_answer_again_while_the_next_commit_trains() -> None:
    cluster = Cluster(make_job()).run().change(hyperparameters=EPOCHS).run().change(hyperparameters=None).run()
    assert endpoint_run(cluster) == 1
    cluster.change(hyperparameters={"epochs": 3}).run(until=lambda c: endpoint_run(c) != 1)
    assert (endpoint_run(cluster), number(cluster)) == (3, 3), "nothing but the next run took over"
    cluster.answer = losing_after(3)
    cluster.change(hyperparameters=None).run().change(hyperparameters={"epochs": 4}).run()
    assert cluster.condition("Promoted") == ("False", "GateFailed")
    assert endpoint_run(cluster) == 1


def test_an_edit_that_is_taken_back_costs_a_training_nothing_but_a_pause() -> None:
    """Its Job is made again under the same name, and so finds its folder with the checkpoint."""
    cluster = Cluster(make_job())
    cluster.run(until=lambda c: c.job.status.stage == Stage.TRAIN and bool(c.pods))
    cluster.change(hyperparameters=EPOCHS)
    cluster.execute(cluster.plan())
    assert number(cluster) == 2
    cluster.change(hyperparameters=None).run()
    assert (number(cluster), endpoint_run(cluster)) == (1, 1)
    assert results(cluster) == [(1, RunResult.PROMOTED), (2, RunResult.SUPERSEDED)]
    assert cluster.created.count("Job/travel-r1-train") == 2
    assert cluster.created.count("Job/travel-r1-prepare") == 1
    assert not any(name.startswith("Job/travel-r2-train") for name in cluster.created)
    started = [event.message for plan in cluster.plans for event in plan.events if event.reason == "RunStarted"]
    assert started == ["Run 1 started (Created).", "Run 2 started (SpecChanged).", "Run 1 taken up again."]


@pytest.mark.parametrize("retention", [{}, {"retention": {"keepRuns": 2}}])
def test_an_edit_is_taken_back_also_when_the_history_is_full(retention: dict[str, Any]) -> None:
    job, few = make_job(output={"claimName": "models", **retention}), Settings(run_history_limit=2)
    cluster = Cluster(job, few, answer=removes)
    for token in ("b", "c"):
        cluster.run().change(rerunToken=token)
    cluster.run().change(rerunToken="d").run(until=lambda c: c.job.status.stage == Stage.TRAIN and bool(c.pods))
    assert [number for number, _ in results(cluster)] == [2, 3]
    cluster.change(hyperparameters=EPOCHS)
    cluster.execute(cluster.plan())
    cluster.now += TAKEN_BACK / 2
    cluster.execute(cluster.plan())
    assert [number for number, _ in results(cluster)] == [2, 3, 4]
    cluster.change(hyperparameters=None)
    cluster.execute(cluster.plan())
    assert number(cluster) == 4
    cluster.change(hyperparameters=EPOCHS)
    cluster.execute(cluster.plan())
    cluster.now += 2 * TAKEN_BACK
    cluster.execute(cluster.plan())
    forgotten = [number for number, _ in results(cluster)] == [2, 3]
    going = [record.files.state for record in cluster.job.status.runs if record.number == 4 and record.files]
    assert forgotten or going == ["Removing"], "nobody takes it back any more"


def test_a_superseded_run_that_loses_its_checkpoints_is_left_alone() -> None:
    """What is being removed is chosen by nobody."""
    retention = {"claimName": "models", "retention": {"keepRuns": 5}}
    cluster = Cluster(make_job(output=retention), answer=removes)
    cluster.run(until=lambda c: c.job.status.stage == Stage.TRAIN and bool(c.pods))
    cluster.change(hyperparameters=EPOCHS)
    cluster.run()
    (superseded,) = [record.files for record in cluster.job.status.runs if record.number == 1]
    assert superseded is not None
    assert superseded.checkpoints is None
    cluster.now += TAKEN_BACK
    cluster.run(until=lambda c: any(r.files and r.files.checkpoints == "Removing" for r in c.job.status.runs))
    cluster.change(hyperparameters=None)
    cluster.execute(cluster.plan())
    assert number(cluster) == 3


@pytest.mark.parametrize("writes", range(4))
def test_a_pass_that_is_cut_short_takes_up_the_same_run(writes: int) -> None:
    cluster = Cluster(make_job())
    cluster.run(until=lambda c: c.job.status.stage == Stage.TRAIN and bool(c.pods))
    for change in (EPOCHS, None):
        cluster.change(hyperparameters=change)
        cluster.execute(cluster.plan(), writes)
        cluster.execute(cluster.plan())
    cluster.run()
    assert (number(cluster), endpoint_run(cluster)) == (1, 1)
    assert results(cluster) == [(1, RunResult.PROMOTED), (2, RunResult.SUPERSEDED)]
