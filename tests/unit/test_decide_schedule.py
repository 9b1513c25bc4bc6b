"""Schedules: which run an occasion starts, and that none is met twice or forgotten."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulator import START, Cluster, Manifest, make_job, stamp, succeed
from tests.unit.test_decide_runs import losing_after

from finetune_api.conditions import RunResult, Stage, Trigger
from finetune_api.reports import Summary
from finetune_api.status import Beginning
from finetune_operator.occasions import last_until

HOURLY = {"schedule": {"cron": "0 * * * *"}}
DAILY = {"cron": "30 2 * * *", "timeZone": "Europe/Berlin"}


def scheduled(**more: Any) -> dict[str, Any]:
    return {"schedule": {"cron": "0 * * * *", **more}}


def started(cluster: Cluster) -> list[tuple[int, str, str | None]]:
    """Number, trigger and occasion of the runs in the history."""
    return [(record.number, record.trigger, record.occasion) for record in cluster.job.status.runs]


def wait(cluster: Cluster, **time: float) -> Cluster:
    """Time passes, and the pass that was asked for comes."""
    cluster.now += timedelta(**time)
    return cluster.run()


def trained(cluster: Cluster) -> list[str]:
    return [name for name in cluster.created if name.endswith("-train")]


def test_each_occasion_is_one_run_of_the_same_specification() -> None:
    cluster = Cluster(make_job(triggers=HOURLY)).run()
    status = cluster.job.status
    assert status.schedule is not None
    assert status.schedule.next_time == "2026-01-01T01:00:00Z"
    assert cluster.condition("Scheduled") == ("True", "Planned")
    assert started(cluster) == [(1, "Created", None)]
    wait(cluster, hours=1)
    wait(cluster, minutes=1)
    assert started(cluster) == [(1, "Created", None), (2, "Schedule", "2026-01-01T01:00:00Z")]
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.job.status.schedule is not None
    assert cluster.job.status.schedule.last_time == "2026-01-01T01:00:00Z"
    assert cluster.job.status.schedule.next_time == "2026-01-01T02:00:00Z"
    config_map = cluster.objects["ConfigMap", "travel-r2"]["metadata"]["annotations"]
    assert config_map["finetune-operator.io/trigger"] == "Schedule"
    assert config_map["finetune-operator.io/occasion"] == "2026-01-01T01:00:00Z"
    events = [event.message for plan in cluster.plans for event in plan.events if event.reason == "RunStarted"]
    assert events[-1] == "Run 2 started (Schedule, 2026-01-01T01:00:00Z)."


def test_it_asks_to_look_again_when_the_next_occasion_comes_and_writes_nothing_until_then() -> None:
    cluster = Cluster(make_job(triggers=HOURLY)).run()
    cluster.now = START + timedelta(minutes=20)
    plan = cluster.plan()
    assert plan.requeue_after == 40 * 60
    assert plan.status == cluster.job.status
    assert not plan.apply
    assert not plan.events


def test_the_operator_was_down_over_several_occasions_one_run_makes_up_for_them() -> None:
    cluster = Cluster(make_job(triggers=HOURLY)).run()
    wait(cluster, hours=30, minutes=5)
    assert started(cluster)[1:] == [(2, "Schedule", "2026-01-02T06:00:00Z")]


def test_an_occasion_that_is_too_long_ago_is_passed_over_and_said() -> None:
    cluster = Cluster(make_job(triggers=scheduled(startingDeadlineSeconds=600))).run()
    wait(cluster, hours=3, minutes=11)
    assert len(started(cluster)) == 1
    assert "OccasionMissed" in cluster.events()
    assert cluster.job.status.schedule is not None
    assert cluster.job.status.schedule.missed_time == "2026-01-01T03:00:00Z"
    wait(cluster, minutes=50)
    assert started(cluster)[1:] == [(2, "Schedule", "2026-01-01T04:00:00Z")]
    assert cluster.events().count("OccasionMissed") == 1


def test_a_run_under_way_is_waited_for_and_the_last_of_the_occasions_counts() -> None:
    cluster = Cluster(make_job(triggers=HOURLY))
    cluster.run(until=lambda c: c.job.status.stage == "Train")
    cluster.now += timedelta(hours=2, minutes=30)
    cluster.execute(cluster.plan())
    assert cluster.condition("Scheduled") == ("True", "RunUnderWay")
    writes = cluster.job.status
    cluster.now += timedelta(hours=1)
    assert cluster.plan().status == writes  # not one write an occasion
    cluster.run()
    assert started(cluster) == [(1, "Created", None), (2, "Schedule", "2026-01-01T03:00:00Z")]
    assert cluster.job.status.runs[0].result is RunResult.PROMOTED


def test_replace_supersedes_the_run_under_way() -> None:
    cluster = Cluster(make_job(triggers=scheduled(concurrencyPolicy="Replace")))
    cluster.run(until=lambda c: c.job.status.stage == "Train")
    cluster.now += timedelta(hours=1)
    cluster.run()
    assert [record.result for record in cluster.job.status.runs] == [RunResult.SUPERSEDED, RunResult.PROMOTED]
    assert "Schedule 2026-01-01T01:00:00Z came" in cluster.job.status.runs[0].message


def test_a_schedule_that_is_added_counts_from_then_on() -> None:
    cluster = Cluster(make_job()).run()
    cluster.now += timedelta(days=30, minutes=10)
    cluster.change(triggers=HOURLY).run()
    assert started(cluster) == [(1, "Created", None)]
    wait(cluster, minutes=50)
    assert started(cluster)[1:] == [(2, "Schedule", "2026-01-31T01:00:00Z")]


def test_what_passes_while_it_is_suspended_is_not_made_up_for() -> None:
    cluster = Cluster(make_job(triggers=scheduled(suspend=True))).run()
    assert cluster.condition("Scheduled") == ("False", "Suspended")
    wait(cluster, hours=5, minutes=10)
    cluster.change(triggers=HOURLY).run()
    assert len(started(cluster)) == 1
    wait(cluster, minutes=50)
    assert started(cluster)[1:] == [(2, "Schedule", "2026-01-01T06:00:00Z")]


def test_a_suspended_job_begins_no_run_and_makes_up_for_one_when_it_goes_on() -> None:
    cluster = Cluster(make_job(triggers=HOURLY)).run().change(triggers=HOURLY, suspend=True).run()
    wait(cluster, hours=3)
    assert len(started(cluster)) == 1
    assert cluster.condition("Scheduled") == ("True", "Suspended")
    cluster.change(triggers=HOURLY, suspend=False).run()
    assert started(cluster)[1:] == [(2, "Schedule", "2026-01-01T03:00:00Z")]


def test_a_schedule_that_makes_no_sense_is_said_and_stops_nothing() -> None:
    cluster = Cluster(make_job(triggers={"schedule": {**DAILY, "timeZone": "Europe/Atlantis"}})).run()
    assert cluster.condition("Scheduled") == ("False", "ScheduleInvalid")
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.events().count("ScheduleInvalid") == 1
    ready = next(each.message for each in cluster.job.status.conditions if each.type == "Ready")
    assert "timeZone: 'Europe/Atlantis' is not known here" in ready, "where a GitOps tool shows it"
    cluster.change(triggers={"schedule": DAILY}).run()
    assert cluster.condition("Scheduled") == ("True", "Planned")


def test_going_back_to_an_earlier_commit_finds_its_last_scheduled_run() -> None:
    cluster = Cluster(make_job(triggers=HOURLY)).run()
    wait(cluster, hours=1)
    cluster.change(triggers=HOURLY, hyperparameters={"epochs": 2}).run()
    assert started(cluster)[2] == (3, "SpecChanged", None)
    cluster.change(hyperparameters={}).run()
    run = cluster.job.status.run
    assert run is not None
    assert (run.number, run.occasion) == (2, "2026-01-01T01:00:00Z")
    assert len(trained(cluster)) == 3


def test_going_back_to_a_scheduled_run_meets_no_occasion_again() -> None:
    cluster = Cluster(make_job(triggers=HOURLY)).run()
    wait(cluster, hours=1)
    cluster.change(hyperparameters={"epochs": 2}).run()
    wait(cluster, hours=1)
    before = trained(cluster)
    cluster.change(hyperparameters={}).run()
    assert cluster.job.status.run is not None
    assert (cluster.job.status.run.number, trained(cluster)) == (2, before)
    assert cluster.job.status.schedule is not None
    assert cluster.job.status.schedule.since == "2026-01-01T02:00:00Z"
    wait(cluster, hours=1)
    assert started(cluster)[-1] == (5, "Schedule", "2026-01-01T03:00:00Z")


def test_going_back_to_an_earlier_commit_finds_what_it_had_promoted_not_what_failed_since() -> None:
    cluster = Cluster(make_job(triggers=HOURLY)).run()
    cluster.answer = losing_after(1)
    wait(cluster, hours=1)
    assert cluster.condition("Promoted") == ("False", "GateFailed")
    cluster.answer = succeed
    cluster.change(hyperparameters={"epochs": 2}).run()
    cluster.change(hyperparameters={}).run()
    assert cluster.job.status.run is not None
    assert cluster.job.status.endpoint is not None
    assert (cluster.job.status.run.number, cluster.job.status.endpoint.run) == (1, 1)
    assert cluster.condition("Promoted") == ("True", "GatePassed")


def test_a_changed_schedule_is_no_new_run() -> None:
    cluster = Cluster(make_job()).run().change(triggers={"schedule": DAILY}).run()
    assert len(trained(cluster)) == 1


def test_a_rerun_records_its_word() -> None:
    cluster = Cluster(make_job()).run().change(rerunToken="june").run()
    assert started(cluster)[1:] == [(2, "Rerun", "june")]


@pytest.mark.parametrize("writes", range(8))
@pytest.mark.parametrize("later", [0, 90])
def test_a_pass_that_is_cut_short_starts_no_second_run_for_its_occasion(writes: int, later: int) -> None:
    """`later`: minutes until another replica looks; by then one more occasion may have come."""
    cluster = Cluster(make_job(triggers=HOURLY)).run()
    cluster.now = START + timedelta(hours=1)
    cluster.execute(cluster.plan(), writes=writes)
    cluster.now += timedelta(minutes=later)
    cluster.run()
    occasions = [occasion for _, _, occasion in started(cluster)[1:]]
    assert occasions == sorted(set(occasions))
    assert len(trained(cluster)) == len(set(trained(cluster))) == len(started(cluster))
    assert [number for number, _, _ in started(cluster)] == list(range(1, len(started(cluster)) + 1))


def test_a_clock_far_ahead_does_not_put_the_schedule_off_for_ever() -> None:
    cluster = Cluster(make_job(triggers=HOURLY)).run()
    wait(cluster, days=3650)
    assert len(started(cluster)) == 2
    cluster.now = START + timedelta(minutes=30)
    cluster.run()
    wait(cluster, minutes=30)
    assert len(started(cluster)) == 3


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(-90, 400), min_size=1, max_size=6), st.sampled_from(["0 * * * *", "*/20 * * * *"]))
def test_no_occasion_is_met_twice_and_none_forgotten_however_clocks_go(steps: list[int], cron: str) -> None:
    """Minutes between passes; clocks of replicas may also be behind one another."""
    cluster = Cluster(make_job(triggers={"schedule": {"cron": cron}})).run()
    furthest = cluster.now
    for step in steps:
        cluster.now += timedelta(minutes=step)
        cluster.run()
        furthest = max(furthest, cluster.now)
        occasions = [run for _, _, run in started(cluster)[1:]]
        assert occasions == sorted(set(occasions))
        due = last_until(cron, "Etc/UTC", START, furthest)
        assert cluster.job.status.schedule is not None
        assert cluster.job.status.schedule.last_time == (stamp(due) if due else None)


def lost(pod: Manifest) -> tuple[int, str]:
    return 1, ""


def test_a_run_that_failed_does_not_hold_the_schedule_up() -> None:
    cluster = Cluster(make_job(triggers=HOURLY), answer=lost).run()
    assert cluster.job.status.runs[-1].result is RunResult.FAILED
    wait(cluster, hours=1)
    assert [number for number, _, _ in started(cluster)] == [1, 2]


def restored(occasion: str, triggers: dict[str, Any] = HOURLY) -> Cluster:
    """A job without a status, whose claim holds what a run by this occasion of the schedule has made."""

    def answer(pod: Manifest) -> tuple[int, str]:
        code, message = succeed(pod)
        summary = Summary.model_validate_json(message)
        if summary.stage is Stage.PREPARE and summary.run == 1:
            begun = Beginning(trigger=Trigger.SCHEDULE, occasion=occasion, time="2026-01-01T05:01:00Z")
            message = summary.model_copy(update={"begun_by": begun}).to_message()
        return code, message

    cluster = Cluster(make_job(triggers=triggers), answer=answer)
    cluster.now = START + timedelta(hours=8, minutes=10)
    return cluster


def test_a_restored_job_goes_on_behind_the_occasion_that_its_files_are_of() -> None:
    cluster = restored("2026-01-01T08:00:00Z").run()
    status = cluster.job.status
    assert started(cluster) == [(1, "Created", None)]
    assert status.run is not None
    assert status.run.taken_over is not None
    assert (status.run.taken_over.trigger, status.run.taken_over.occasion) == ("Schedule", "2026-01-01T08:00:00Z")
    assert status.schedule is not None
    assert (status.schedule.last_time, status.schedule.next_time) == ("2026-01-01T08:00:00Z", "2026-01-01T09:00:00Z")
    assert "TakenOver" in cluster.events()
    assert cluster.plan().status == status
    wait(cluster, minutes=50)
    assert started(cluster)[1:] == [(2, "Schedule", "2026-01-01T09:00:00Z")]


@pytest.mark.parametrize("policy", ["Forbid", "Replace"])
def test_an_occasion_between_backup_and_restore_is_made_up_for(policy: str) -> None:
    """When the model of before answers again, whatever the policy."""
    cluster = restored("2026-01-01T05:00:00Z", scheduled(concurrencyPolicy=policy)).run()
    assert started(cluster) == [(1, "Created", None), (2, "Schedule", "2026-01-01T08:00:00Z")]
    assert [record.result for record in cluster.job.status.runs] == [RunResult.PROMOTED, RunResult.PROMOTED]


def test_an_occasion_between_backup_and_restore_that_is_too_long_ago_is_passed_over() -> None:
    cluster = restored("2026-01-01T05:00:00Z", scheduled(startingDeadlineSeconds=60)).run()
    assert started(cluster) == [(1, "Created", None)]
    assert cluster.job.status.schedule is not None
    assert cluster.job.status.schedule.missed_time == "2026-01-01T08:00:00Z"


@pytest.mark.parametrize(
    "occasion", ["2026-01-01T05:30:00Z", "2027-01-01T05:00:00Z", "0001-01-01T00:00:00Z", "x" * 99, ""]
)
def test_what_is_no_occasion_of_the_schedule_leaves_it_as_it_is(occasion: str) -> None:
    """The schedule was changed since, or the volume says what it likes."""
    cluster = restored(occasion).run()
    assert started(cluster) == [(1, "Created", None)]
    wait(cluster, minutes=50)
    assert started(cluster)[1:] == [(2, "Schedule", "2026-01-01T09:00:00Z")]
