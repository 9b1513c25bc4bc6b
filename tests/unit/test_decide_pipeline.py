"""From nothing to a served model, and what stays true on the way."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.simulator import Cluster, Manifest, good_summary, make_job, succeed

from finetune_api.status import Checkpoint, FineTuneJobStatus, Progress
from finetune_operator.builders.shape import SHAPES
from finetune_operator.plan import ProgressReport
from finetune_operator.runs import JOB_STAGES
from finetune_operator.settings import Settings
from finetune_operator.stages.pipeline import PIPELINE, STAGES

CHILDREN = [
    "ConfigMap/travel-r1",
    "Job/travel-r1-prepare",
    "Job/travel-r1-train",
    "Job/travel-r1-evaluate",
    "Deployment/travel-serve",
    "Service/travel-serve",
]
LIFE = ["RunStarted", "DatasetChecked", "TrainingStarted", "TrainingFinished", "Evaluated", "Promoted", "Serving"]
TIMES = {"startTime", "completionTime", "lastTransitionTime", "updateTime", "since", "time"}


def timeless(value: Any) -> Any:
    """The status without its times."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in TIMES}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def final(cluster: Cluster) -> dict[str, Any]:
    wire: dict[str, Any] = timeless(cluster.job.status.to_wire())
    wire["run"].pop("attempt")  # a second look at a lost summary is an honest second attempt
    return wire


def test_every_stage_that_runs_as_a_job_has_its_row_and_its_pod() -> None:
    assert tuple(STAGES) == tuple(SHAPES) == JOB_STAGES
    assert len({stage.words.condition for stage in PIPELINE}) == len(PIPELINE)


def test_a_job_passes_through_all_stages_to_an_endpoint() -> None:
    cluster = Cluster(make_job()).run()
    status = cluster.job.status
    assert cluster.created == CHILDREN
    assert cluster.condition("Ready") == ("True", "Serving")
    for kind in ("DatasetValid", "Trained", "Evaluated", "Promoted", "Serving"):
        assert cluster.condition(kind)[0] == "True", kind
    for kind in ("Reconciling", "Stalled"):
        assert cluster.condition(kind)[0] == "False", kind
    assert (status.stage, status.percent, status.model_name) == ("Serve", "100%", "tiny-base")
    assert status.endpoint is not None
    assert status.endpoint.url == "http://travel-serve.team-a.svc:8000/v1"
    assert (status.endpoint.model, status.endpoint.base_model, status.endpoint.run) == ("travel", "tiny-base", 1)
    assert status.model is not None
    assert status.model.uri == "pvc://models/team-a/travel/runs/1/model"
    assert [(r.number, r.result, r.loss, r.base_loss) for r in status.runs] == [(1, "Promoted", 1.0, 2.0)]


def test_a_life_stays_within_its_budget_of_writes() -> None:
    cluster = Cluster(make_job()).run()
    written = [plan.status for plan in cluster.plans]
    changes = sum(1 for old, new in itertools.pairwise([None, *written]) if old != new)
    assert changes <= 8
    assert sum(len(plan.apply) for plan in cluster.plans) == 6
    assert cluster.events() == LIFE


def test_the_first_pass_writes_three_times() -> None:
    plan = Cluster(make_job()).plan()
    assert [m["kind"] for m in plan.apply] == ["ConfigMap", "Job"]
    assert plan.delete == ()
    assert plan.status.run is not None
    assert plan.status.run.trigger == "Created"


def test_a_stage_starts_only_after_the_one_before() -> None:
    cluster = Cluster(make_job())
    seen: list[str] = []

    def look(_: Cluster) -> bool:
        seen.append(cluster.created[-1])
        return False

    cluster.run(until=look)
    jobs = [name for name, _ in itertools.groupby(seen) if name.startswith("Job/")]
    assert jobs == CHILDREN[1:4]


def assert_idempotent(cluster: Cluster) -> None:
    again = cluster.plan()
    assert again.apply == ()
    assert again.events == ()
    assert again.status == cluster.job.status
    assert all(cluster.objects[ref.kind, ref.name]["metadata"].get("deletionTimestamp") for ref in again.delete)


def test_after_every_pass_another_pass_does_nothing() -> None:
    cluster = Cluster(make_job())

    def check(_: Cluster) -> bool:
        assert_idempotent(cluster)
        return False

    cluster.run(until=check)
    cluster.change(rerunToken="again").run(until=check)


def test_every_status_survives_the_types_that_the_crd_is_made_of() -> None:
    for plan in Cluster(make_job()).run().plans:
        assert FineTuneJobStatus.model_validate_json(plan.status.model_dump_json(by_alias=True)) == plan.status


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_crash_after_any_write_of_any_pass_ends_in_the_same_place(writes: int) -> None:
    expected = final(Cluster(make_job()).run())
    passes = len(Cluster(make_job()).run().plans)
    for crash in range(passes):
        cluster = Cluster(make_job())
        count = itertools.count()
        cluster.run(until=lambda _, n=count, c=crash: next(n) == c)  # type: ignore[misc]
        cluster.execute(cluster.plan(), writes=writes)
        cluster.run()
        assert final(cluster) == expected
        assert cluster.created == CHILDREN


def play(cluster: Cluster, choices: list[tuple[int, int | None]]) -> None:
    """Some moves of the cluster, then a pass that may be cut short; as often as there are choices."""
    for move, writes in choices:
        cluster.execute(cluster.plan(), writes=writes)
        moves = cluster.moves()
        if moves:
            moves[move % len(moves)]()


CHOICES = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, None, 0, 1, 2])), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CHOICES)
def test_any_order_of_moves_and_crashes_ends_in_the_same_place(choices: list[tuple[int, int | None]]) -> None:
    cluster = Cluster(make_job())
    play(cluster, choices)
    cluster.run()
    assert final(cluster) == final(Cluster(make_job()).run())
    assert cluster.created == CHILDREN


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CHOICES, CHOICES)
def test_a_new_run_in_the_middle_of_anything_ends_served(
    before: list[tuple[int, int | None]], after: list[tuple[int, int | None]]
) -> None:
    cluster = Cluster(make_job())
    play(cluster, before)
    cluster.change(rerunToken="again")
    play(cluster, after)
    cluster.run()
    status = cluster.job.status
    assert cluster.condition("Ready") == ("True", "Serving")
    assert status.run is not None
    assert status.endpoint is not None
    assert status.endpoint.run == status.run.number
    assert not [
        job for (kind, _), job in cluster.objects.items() if kind == "Job" and not job["status"].get("conditions")
    ]


def test_a_lost_status_is_found_again_without_new_children() -> None:
    cluster = Cluster(make_job()).run()
    expected = final(cluster)
    cluster.job = make_job()
    cluster.run()
    assert final(cluster) == expected
    assert cluster.created == CHILDREN


def test_finished_stages_do_not_run_again_when_their_jobs_are_gone() -> None:
    cluster = Cluster(make_job()).run()
    for key in [key for key in cluster.objects if key[0] == "Job"]:
        cluster.vanish(*key)
    assert_idempotent(cluster)


def test_a_summary_that_is_lost_is_said_again_by_the_same_stage() -> None:
    cluster = Cluster(make_job())
    cluster.execute(cluster.plan())
    for _ in range(4):
        cluster.moves()[0]()
    cluster.pods.clear()  # the node is gone, and its pods with it, before the operator came back
    cluster.watched_only = True
    waits = cluster.plan()
    assert (waits.delete, waits.unread) == ((), True)  # the pod's end may only come later than the Job's
    cluster.watched_only = False
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.created.count("Job/travel-r1-prepare") == 2
    assert cluster.created.count("Job/travel-r1-train") == 1


def test_a_stage_that_never_says_anything_ends_the_run() -> None:
    cluster = Cluster(make_job(), answer=lambda pod: (0, "Done. Have a nice day.")).run()
    assert cluster.condition("Stalled") == ("True", "SystemFault")
    assert cluster.created.count("Job/travel-r1-prepare") == 4  # the first and as many again as a Job is retried


def reporting(percent: int, loss: float | None = 1.5) -> ProgressReport:
    progress = Progress(percent=percent, step=percent, total_steps=100, train_loss=loss)
    return ProgressReport(run=1, progress=progress, checkpoint=Checkpoint(step=percent))


def training() -> Cluster:
    cluster = Cluster(make_job(), Settings(progress_interval_seconds=10))
    return cluster.run(
        until=lambda c: bool(c.pods) and c.pods[-1]["status"].get("phase") == "Running" and at(c, "Train")
    )


def at(cluster: Cluster, stage: str) -> bool:
    return cluster.pods[-1]["metadata"]["labels"]["finetune-operator.io/stage"] == stage


def test_progress_is_written_at_most_once_an_interval() -> None:
    cluster = training()
    cluster.progress = reporting(20)
    first = cluster.plan()
    assert first.status.percent == "20%"
    assert first.status.run is not None
    assert first.status.run.checkpoint == Checkpoint(step=20)
    cluster.execute(first)
    cluster.progress = reporting(30)
    held = cluster.plan()
    assert held.status == cluster.job.status
    assert held.requeue_after == 10
    assert held.events == ()
    cluster.now = cluster.now.replace(second=cluster.now.second + 10)
    assert cluster.plan().status.percent == "30%"


def test_progress_of_another_run_is_not_shown() -> None:
    cluster = training()
    cluster.progress = replace(reporting(20), run=2)
    assert cluster.plan().status == cluster.job.status


def test_a_loss_that_is_not_a_number_does_not_reach_the_status() -> None:
    cluster = training()
    cluster.progress = reporting(20, loss=float("nan"))
    run = cluster.plan().status.run
    assert run is not None
    assert run.progress is not None
    assert (run.progress.step, run.progress.train_loss) == (20, None)


def test_an_evaluation_with_an_infinite_loss_is_no_evaluation() -> None:
    def answer(pod: Manifest) -> tuple[int, str]:
        code, message = succeed(pod)
        return code, message.replace('"loss":1.0', '"loss":Infinity')

    cluster = Cluster(make_job(), answer=answer).run()
    assert cluster.condition("Evaluated") == ("False", "SystemFault")


def test_notes_of_the_trainer_reach_the_status() -> None:
    def answer(pod: Manifest) -> tuple[int, str]:
        code, message = succeed(pod)
        return code, message.replace('"notes":[]', '"notes":["The micro batch was halved to 2."]')

    run = Cluster(make_job(), answer=answer).run().job.status.run
    assert run is not None
    assert run.notes == ["The micro batch was halved to 2."]


def test_a_job_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    job = make_job()
    gone = job.metadata.model_copy(update={"deletion_timestamp": "2026-01-01T00:00:00Z"})
    cluster = Cluster(job.model_copy(update={"metadata": gone}))
    plan = cluster.plan()
    assert (plan.apply, plan.delete, plan.events) == ((), (), ())


def test_good_summaries_fit_into_a_termination_message() -> None:
    for stage in ("Prepare", "Train", "Evaluate"):
        assert len(good_summary(stage, 1)) < 4096
