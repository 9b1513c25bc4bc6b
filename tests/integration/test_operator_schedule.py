"""Schedules and edits in a row on a real API server, by a clock of the test's own; the leader may die at any write."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from tests.cluster.control_plane import ControlPlane
from tests.operator_process import (
    GROUP,
    Kubelet,
    children,
    condition,
    job_manifest,
    make_namespace,
    status_of,
)
from tests.simulator import good_summary
from tests.single_life import FOR_EVER, look

from finetune_operator.settings import Settings

NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)  # the day before clocks go forward in Berlin
NIGHTLY = {"cron": "30 2 * * *", "timeZone": "Europe/Berlin", "concurrencyPolicy": "Replace"}


def look_at(
    plane: ControlPlane, namespace: str, now: datetime, writes: float = FOR_EVER, settle_seconds: float = 0
) -> None:
    """A leader of its own looks at this time, and dies after `writes`."""
    look(plane, namespace, writes=writes, settings=Settings(settle_seconds=settle_seconds), clock=lambda: now)


def events(plane: ControlPlane, namespace: str) -> list[tuple[str, str]]:
    found = plane.kubectl.json("get", "events.events.k8s.io", namespace=namespace)["items"]
    return sorted((each["reason"], each["note"]) for each in found if each["regarding"]["kind"] == "FineTuneJob")


def test_an_occasion_is_one_run_whoever_makes_it(plane: ControlPlane) -> None:
    namespace = make_namespace(plane, "schedule")
    plane.kubectl.apply(job_manifest("travel", namespace, triggers={"schedule": NIGHTLY}))
    look_at(plane, namespace, NOON)
    after_the_gap = NOON.replace(day=29, hour=1)  # 02:30 does not exist that night
    look_at(plane, namespace, after_the_gap, writes=1)  # dies with the ConfigMap made
    look_at(plane, namespace, after_the_gap + timedelta(seconds=9), writes=1)  # with the Job, before the status knows
    look_at(plane, namespace, after_the_gap + timedelta(minutes=1))
    look_at(plane, namespace, after_the_gap - timedelta(minutes=1))  # another one, whose clock is behind
    status = status_of(plane, namespace, "travel")
    run = status["run"]
    assert (run["number"], run["trigger"], run["occasion"]) == (2, "Schedule", "2026-03-29T01:00:00Z")
    assert status["schedule"]["nextTime"] == "2026-03-30T00:30:00Z"
    assert [(record["number"], record["result"]) for record in status["runs"]] == [(1, "Superseded")]
    assert ("Job", "travel-r2-prepare") in [each[:2] for each in children(plane, namespace)]
    started = [note for reason, note in events(plane, namespace) if reason == "RunStarted"]
    assert started == ["Run 1 started (Created).", "Run 2 started (Schedule, 2026-03-29T01:00:00Z)."]
    annotations = plane.kubectl.json("get", "configmap", "travel-r2", namespace=namespace)["metadata"]["annotations"]
    assert annotations["finetune-operator.io/occasion"] == "2026-03-29T01:00:00Z"
    shown = plane.kubectl("get", "finetunejob", "travel", "-o", "wide", namespace=namespace)
    assert "NEXT-RUN" in shown
    assert "2026-03-30T00:30:00Z" in shown


def test_what_only_the_operator_can_tell_is_a_condition(plane: ControlPlane) -> None:
    namespace = make_namespace(plane, "schedule-unknown")
    plane.kubectl.apply(
        job_manifest("travel", namespace, triggers={"schedule": {**NIGHTLY, "timeZone": "Europe/Atlantis"}})
    )
    look_at(plane, namespace, NOON)
    status = status_of(plane, namespace, "travel")
    assert condition(status, "Scheduled") == ("False", "ScheduleInvalid")
    assert condition(status, "Reconciling") == ("True", "Preparing")
    ((_, note),) = [event for event in events(plane, namespace) if event[0] == "ScheduleInvalid"]
    assert "timeZone: 'Europe/Atlantis' is not known here; write an IANA name" in note


def test_ten_edits_within_a_minute_train_once(plane: ControlPlane) -> None:
    """Each Prepare ends before the next edit comes, so that only the quiet time keeps it from training."""
    namespace, kubelet = make_namespace(plane, "edits"), Kubelet(plane, "edits")
    for edit in range(10):
        knobs = {"epochs": edit + 1, "seed": 7}
        plane.kubectl.apply(job_manifest("travel", namespace, hyperparameters=knobs))
        now = NOON + timedelta(seconds=6 * edit)
        look_at(plane, namespace, now, settle_seconds=30)
        if edit in (1, 8, 9):
            kubelet.end(f"{GROUP}/run={edit + 1},{GROUP}/stage=Prepare", good_summary("Prepare", edit + 1))
            job = f"travel-r{edit + 1}-prepare"
            plane.kubectl("wait", f"job/{job}", "--for=condition=Complete", "--timeout=60s", namespace=namespace)
            look_at(plane, namespace, now + timedelta(seconds=1), settle_seconds=30)
            assert condition(status_of(plane, namespace, "travel"), "Reconciling") == ("True", "Settling")
    assert trainings(plane, namespace) == []
    look_at(plane, namespace, NOON + timedelta(seconds=6 * 9 + 31), settle_seconds=30)
    assert trainings(plane, namespace) == ["travel-r10-train"]


def test_a_restored_job_goes_on_behind_the_occasion_that_its_files_are_of(plane: ControlPlane) -> None:
    """The status is lost, and Prepare finds the model of two nights ago on the claim."""
    namespace, kubelet = make_namespace(plane, "schedule-restored"), Kubelet(plane, "schedule-restored")
    plane.kubectl.apply(job_manifest("travel", namespace, triggers={"schedule": NIGHTLY}))
    begun = {"trigger": "Schedule", "occasion": "2026-03-27T01:30:00Z", "time": "2026-03-27T01:30:09Z"}
    for minute, stage in enumerate(("Prepare", "Train", "Evaluate")):
        look_at(plane, namespace, NOON + timedelta(minutes=minute))
        assert status_of(plane, namespace, "travel")["run"].get("takenOver") == (begun if minute else None)
        known = {"begunBy": begun} if stage == "Prepare" else {}
        kubelet.end(f"{GROUP}/stage={stage}", json.dumps(json.loads(good_summary(stage, 1)) | known))
        job = f"job/travel-r1-{stage.lower()}"
        plane.kubectl("wait", job, "--for=condition=Complete", "--timeout=60s", namespace=namespace)
    look_at(plane, namespace, NOON + timedelta(minutes=3))
    told = "Run 1 takes over the files of a forgotten run (Schedule, 2026-03-27T01:30:00Z)."
    assert ("TakenOver", told) in events(plane, namespace)
    status = status_of(plane, namespace, "travel")
    missed = "2026-03-28T01:30:00Z"
    assert (status["run"]["number"], status["run"]["trigger"], status["run"]["occasion"]) == (2, "Schedule", missed)
    assert status["schedule"]["lastTime"] == missed
    assert [(record["number"], record["result"]) for record in status["runs"]] == [(1, "Promoted")]


def test_an_edit_that_is_taken_back_leads_back_to_the_training_that_it_ended(plane: ControlPlane) -> None:
    namespace, kubelet = make_namespace(plane, "taken-back"), Kubelet(plane, "taken-back")
    job = job_manifest("travel", namespace)
    plane.kubectl.apply(job)
    look_at(plane, namespace, NOON)
    kubelet.end(f"{GROUP}/run=1,{GROUP}/stage=Prepare", good_summary("Prepare", 1))
    plane.kubectl("wait", "job/travel-r1-prepare", "--for=condition=Complete", "--timeout=60s", namespace=namespace)
    look_at(plane, namespace, NOON)
    former = plane.kubectl.json("get", "job", "travel-r1-train", namespace=namespace)["metadata"]["uid"]
    plane.kubectl.apply({**job, "spec": {**job["spec"], "hyperparameters": {"epochs": 2}}})
    look_at(plane, namespace, NOON + timedelta(seconds=10), settle_seconds=30)
    assert status_of(plane, namespace, "travel")["run"]["number"] == 2
    plane.kubectl.wait_until(lambda: trainings(plane, namespace) == [], 60, "the end of the training", namespace)
    plane.kubectl("apply", "-f", "-", input=json.dumps(job))
    look_at(plane, namespace, NOON + timedelta(seconds=20), writes=1, settle_seconds=30)  # dies before the status knows
    look_at(plane, namespace, NOON + timedelta(seconds=30), settle_seconds=30)
    status = status_of(plane, namespace, "travel")
    assert status["run"]["number"] == 1
    assert [(record["number"], record["result"]) for record in status["runs"]] == [(2, "Superseded")]
    assert trainings(plane, namespace) == ["travel-r1-train"]
    made = plane.kubectl.json("get", "job", "travel-r1-train", namespace=namespace)
    assert made["metadata"]["uid"] != former
    assert ("RunStarted", "Run 1 taken up again.") in events(plane, namespace)


def trainings(plane: ControlPlane, namespace: str) -> list[str]:
    return [name for kind, name, _ in children(plane, namespace) if kind == "Job" and name.endswith("-train")]
