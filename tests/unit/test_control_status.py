"""What is written: Events within the API server's limits, a refused spec that says so once, and honest probes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import generate_latest
from pydantic import ValidationError
from tests.simulator import SPEC

from finetune_api.conditions import FailureReason
from finetune_api.job import FineTuneJob
from finetune_operator.control import metrics
from finetune_operator.control.api_client import Api, ApiError
from finetune_operator.control.apply import Applier, GoneError, StaleError, _refused, event_manifest
from finetune_operator.control.cache import Cache
from finetune_operator.control.health import OLDEST_SECONDS, Health
from finetune_operator.control.reconcile import invalid_status
from finetune_operator.control.resources import FINE_TUNE_JOB, JOB, WATCHED
from finetune_operator.control.resync import Resync
from finetune_operator.control.workqueue import WorkQueue
from finetune_operator.plan import Event

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def stored(name: str = "travel", status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team-a", "uid": "u", "resourceVersion": "7", "generation": 3}
    return {"kind": "FineTuneJob", "metadata": metadata, "spec": {**SPEC, **spec}, "status": status or {}}


def test_events_fit_the_limits_and_equal_ones_have_one_name() -> None:
    long = event_manifest(stored("x" * 253), Event("Warning", "R" * 300, "m" * 5000), "i" * 300)
    assert len(long["metadata"]["name"]) <= 253
    assert (len(long["note"].encode()), len(long["reason"]), len(long["reportingInstance"])) == (1024, 128, 128)
    names = [
        event_manifest(stored(), Event(kind, "Trained", message), "pod")["metadata"]["name"]  # type: ignore[arg-type]
        for kind, message in (("Normal", "a"), ("Normal", "a"), ("Normal", "b"), ("Warning", "a"))
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3


@pytest.mark.parametrize(("message", "kept"), [("ä" * 512, 512), ("ä" * 513, 511), ("x" + "字" * 400, 341)])
def test_a_note_is_cut_by_the_bytes_that_the_api_server_counts(message: str, kept: int) -> None:
    note = event_manifest(stored(), Event("Warning", "Failed", message), "i")["note"]
    assert len(note.encode()) <= 1024
    assert note == message if len(message) == kept else message[:kept] + "…"


@pytest.mark.parametrize("status", [422, 500, 0])
async def test_an_event_that_is_not_taken_is_told_to_the_log_and_ends_no_pass(
    caplog: pytest.LogCaptureFixture, status: int
) -> None:
    class Refusing:
        async def create(self, *_: Any) -> None:
            raise ApiError(status, "Invalid", "not this one")

    applier = Applier(Refusing(), Cache(), "pod")  # type: ignore[arg-type]
    await applier.events(stored(), [Event("Normal", "Evaluated", "text")])
    assert "job=team-a/travel event=Evaluated lost=" in caplog.text


def test_names_of_events_are_in_the_order_of_what_happened() -> None:
    early, late = stored(), stored()
    early["metadata"]["resourceVersion"], late["metadata"]["resourceVersion"] = "99", "100"
    names = [
        event_manifest(job, Event("Normal", reason, ""), "pod", place)["metadata"]["name"]
        for job in (early, late)
        for place, reason in enumerate(("Zeroth", "First", "Also"))
    ]
    assert names == sorted(names)


def test_an_event_that_happens_again_is_another_event() -> None:
    first, again = stored(), stored()
    again["metadata"]["resourceVersion"] = "8"
    event = Event("Warning", "Unschedulable", "no node")
    names = [event_manifest(job, event, "pod")["metadata"]["name"] for job in (first, first, again)]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("status", "reason", "message", "expected"),
    [
        (403, "Forbidden", "exceeded quota: small, requested: pods=1", FailureReason.QUOTA_EXCEEDED),
        (403, "Forbidden", "cannot create resource", FailureReason.SYSTEM_FAULT),
        (422, "Invalid", "spec.template: Invalid value", FailureReason.SPEC_INVALID),
        (404, "NotFound", "namespace is gone", GoneError),
        (403, "Forbidden", "because it is being terminated", GoneError),
        (409, "Conflict", "newer", ApiError),
        (500, "InternalError", "", ApiError),
        (429, "TooManyRequests", "", ApiError),
        (0, "NoAnswer", "", ApiError),
    ],
)
def test_what_the_api_server_refuses_is_told_apart(status: int, reason: str, message: str, expected: Any) -> None:
    manifest = {"kind": "Job", "metadata": {"name": "j", "namespace": "n"}}
    error = ApiError(status, reason, message)
    if isinstance(expected, FailureReason):
        failure = _refused(JOB, manifest, error)
        assert failure.reason == expected
        assert message in failure.message
    else:
        with pytest.raises(expected):
            _refused(JOB, manifest, error)


class Vanishing:
    """An API server in which what was in the way goes between our write and our look."""

    async def create(self, resource: object, manifest: object) -> None:
        raise ApiError(409, "AlreadyExists", "jobs.batch j already exists")

    async def get(self, resource: object, namespace: str, name: str) -> None:
        raise ApiError(404, "NotFound", "jobs.batch j not found")


async def test_what_was_in_the_way_and_has_just_gone_is_looked_at_again() -> None:
    applier = Applier(Vanishing(), Cache(), "test")  # type: ignore[arg-type]
    with pytest.raises(StaleError):
        await applier.children("uid", [{"kind": "Job", "metadata": {"name": "j", "namespace": "n"}}])


def test_a_refused_spec_is_told_once_and_keeps_the_record() -> None:
    runs = [{"number": 1, "hash": "a", "trigger": "Created", "result": "Promoted"}]
    body = stored(status={"runs": runs}, evaluation={"maxExamples": 0})
    with pytest.raises(ValidationError) as caught:
        FineTuneJob.model_validate(body)
    first = invalid_status(body, caught.value, NOW)
    again = invalid_status({**body, "status": first}, caught.value, NOW + timedelta(days=1))
    assert again == first
    assert first["runs"] == runs
    found = {each["type"]: (each["status"], each["reason"]) for each in first["conditions"]}
    assert found == {
        "Ready": ("False", "SpecInvalid"),
        "Reconciling": ("False", "SpecInvalid"),
        "Stalled": ("True", "SpecInvalid"),
    }
    assert "spec.evaluation.maxExamples" in first["conditions"][0]["message"]


async def test_probes_fail_when_a_restart_would_help() -> None:
    now = 0.0
    cache, queue = Cache(), WorkQueue[tuple[str, str]](clock=lambda: now)
    health = Health(cache, queue, resync_seconds=300)
    assert health.problem() is None
    queue.add(("team-a", "travel"))
    now = OLDEST_SECONDS + 1
    assert "waiting" in (health.problem() or "")
    now = 0.0
    resync = Resync(Api.__new__(Api), cache, queue.add, watched=WATCHED, namespaces=(), seconds=300)
    health.resync = resync
    assert health.problem() is None
    resync.finished_at = float("-inf")
    assert "list" in (health.problem() or "")
    resync.finished_at = float("inf")
    resync.silent = {"pods"}
    assert "pods" in (health.problem() or "")
    queue.close()


def test_series_of_a_training_end_with_it() -> None:
    cache = Cache()
    health = Health(cache, WorkQueue(), resync_seconds=300)
    run = {"number": 2, "progress": {"percent": 40, "trainLoss": 1.5}}
    body = stored(status={"stage": "Train", "run": run})
    cache.store(FINE_TUNE_JOB, body)
    health.refresh_metrics()
    labels = {"namespace": "team-a", "name": "travel", "run": "2"}
    assert metrics.REGISTRY.get_sample_value("finetune_training_percent", labels) == 40
    assert metrics.REGISTRY.get_sample_value("finetune_training_loss", labels) == 1.5
    done = {**body, "metadata": {**body["metadata"], "resourceVersion": "8"}, "status": {"stage": "Serve", "run": run}}
    cache.store(FINE_TUNE_JOB, done)
    health.refresh_metrics()
    assert b'name="travel"' not in generate_latest(metrics.REGISTRY)
    assert metrics.REGISTRY.get_sample_value("finetune_jobs", {"stage": "Serve", "ready": "Unknown"}) == 1


def test_jobs_in_trouble_are_counted_by_their_reason() -> None:
    cache = Cache()
    health = Health(cache, WorkQueue(), resync_seconds=300)
    first, later = ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z")
    waits, too = (
        {"run": {"number": 1, "failure": {"reason": "Unschedulable", "waiting": True, "since": since}}}
        for since in (later, first)
    )
    gated = {"conditions": [{"type": "Stalled", "status": "True", "reason": "GateFailed"}]}
    for name, status in (("a", waits), ("b", too), ("c", gated), ("d", {"stage": "Train"})):
        body = stored(status=status)
        cache.store(FINE_TUNE_JOB, {**body, "metadata": {**body["metadata"], "name": name, "uid": name}})
    health.refresh_metrics()
    value = metrics.REGISTRY.get_sample_value
    assert value("finetune_jobs_waiting", {"reason": "Unschedulable"}) == 2
    assert value("finetune_jobs_waiting_since_timestamp_seconds", {"reason": "Unschedulable"}) == NOW.timestamp()
    assert value("finetune_jobs_stalled", {"reason": "GateFailed"}) == 1
    text = generate_latest(metrics.REGISTRY)
    assert text.count(b"finetune_jobs_waiting{") == text.count(b"finetune_jobs_stalled{") == 1


def test_no_metric_has_a_label_that_prometheus_keeps_for_itself_nor_a_series_that_nobody_reads() -> None:
    metrics.RUNS.labels("Promoted").inc(0)
    metrics.PERCENT.labels("team-a", "travel", "1").set(1)
    for family in metrics.REGISTRY.collect():
        for sample in family.samples:
            assert not {"job", "instance"} & set(sample.labels), sample.name
            assert not sample.name.endswith("_created")
