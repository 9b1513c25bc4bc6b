"""The time that a training has between SIGTERM and SIGKILL."""

from __future__ import annotations

import pytest
from tests.simulator import Cluster, make_job

from finetune_api.interruptions import Interruptions, StopCosts
from finetune_api.status import Checkpoint, RunStatus
from finetune_operator.interruption import needed_grace, newer, with_costs
from finetune_operator.settings import Settings

DEFAULT = Settings().train_grace_seconds


@pytest.mark.parametrize(
    ("step", "save", "seconds"),
    [
        (None, None, DEFAULT),
        (3.0, None, DEFAULT),
        (None, 3.0, DEFAULT),
        (0.01, 0.02, 30),
        (30.0, 60.0, 195),
        (0.3, 45.1, 106),
        (1e15, 1.0, 3600),
    ],
)
def test_twice_what_was_measured_within_bounds(step: float | None, save: float | None, seconds: int) -> None:
    assert needed_grace(StopCosts(step_seconds=step, save_seconds=save), Settings()) == seconds


def test_a_new_attempt_that_measured_nothing_takes_nothing_away() -> None:
    run = with_costs(RunStatus(number=1, hash="a", trigger="Created"), StopCosts(step_seconds=2, lost_steps=4))
    for costs in (None, StopCosts()):
        assert with_costs(run, costs) == run
    again = with_costs(run, StopCosts(save_seconds=3, lost_steps=5))
    assert again.interruptions == Interruptions(step_seconds=2, save_seconds=3, lost_steps=5)


def test_the_later_checkpoint_is_kept() -> None:
    first, second = Checkpoint(step=1), Checkpoint(step=2)
    assert newer(None, None) is None
    assert newer(first, None) == newer(None, first) == first
    assert newer(first, second) == newer(second, first) == second


def test_a_job_keeps_its_period_until_it_proves_too_short() -> None:
    """Measured anew in every attempt: a Job must not be made anew for every tenth of a second."""
    cluster = Cluster(make_job()).run(until=lambda c: ("Job", "travel-r1-train") in c.objects)
    train = cluster.objects["Job", "travel-r1-train"]
    assert train["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == DEFAULT

    def measured(step: float) -> None:
        assert cluster.job.status.run is not None
        run = with_costs(cluster.job.status.run, StopCosts(step_seconds=step, save_seconds=1))
        cluster.write_status(cluster.job.status.model_copy(update={"run": run}))

    cluster.start_pod(train)  # the pod of an earlier attempt is gone, this one has not begun
    measured(2)
    assert cluster.plan().delete == ()
    measured(200)
    assert [ref.name for ref in cluster.plan().delete] == ["travel-r1-train"]
    cluster.run()
    assert cluster.objects["Job", "travel-r1-train"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 417
    assert cluster.condition("Ready") == ("True", "Serving")


def test_the_period_of_the_job_that_is_there_is_told() -> None:
    """Also when the operator died between the Job and the status."""
    cluster = Cluster(make_job()).run(until=lambda c: ("Job", "travel-r1-train") in c.objects)
    train = cluster.objects["Job", "travel-r1-train"]
    train["metadata"]["annotations"]["finetune-operator.io/grace-seconds"] = "77"
    cluster.execute(cluster.plan())
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.interruptions == Interruptions(grace_seconds=77)
