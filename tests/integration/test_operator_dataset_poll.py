"""Looks at the data on a real API server with its controllers, by the test's own clock; the kubelet alone is played."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.cluster.control_plane import ControlPlane
from tests.operator_process import GROUP, Kubelet, children, condition, job_manifest, make_namespace, status_of
from tests.simulator import good_summary
from tests.single_life import FOR_EVER, look

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import StageFailure, Summary
from finetune_api.status import DatasetStatus
from finetune_operator.looks import next_look

PERIOD = 7200
POLL = f"{GROUP}/stage=Poll"


def found(fingerprint: str) -> str:
    return Summary(stage=Stage.PREPARE, ok=True, dataset=DatasetStatus(fingerprint=fingerprint)).to_message()


def not_found() -> str:
    failure = StageFailure(
        reason=FailureReason.SOURCE_UNAVAILABLE,
        message="s3://team/train.jsonl: there is no such object or bucket",
        advice="correct the source",
    )
    return Summary(stage=Stage.PREPARE, ok=False, failure=failure).to_message()


class Tenant:
    """A job in a namespace of its own, and leaders that look at it and die."""

    def __init__(self, plane: ControlPlane, name: str) -> None:
        self.plane, self.namespace = plane, make_namespace(plane, name)
        self.kubelet = Kubelet(plane, self.namespace)
        self.now = datetime.now(UTC)
        poll = {"triggers": {"datasetPoll": {"periodSeconds": PERIOD}}, "serving": {"replicas": 0}}
        plane.kubectl.apply(job_manifest("travel", self.namespace, **poll))

    def look(self, writes: float = FOR_EVER) -> int:
        return look(self.plane, self.namespace, writes=writes, clock=lambda: self.now)

    def status(self) -> dict[str, Any]:
        return status_of(self.plane, self.namespace, "travel")

    def jobs(self, part: str) -> list[str]:
        return [name for kind, name, _ in children(self.plane, self.namespace) if kind == "Job" and part in name]

    def end(self, selector: str, job: str, words: str, exit_code: int = 0) -> None:
        self.kubelet.end(selector, words, exit_code)
        wanted = "Failed" if exit_code else "Complete"
        self.plane.kubectl("wait", f"job/{job}", f"--for=condition={wanted}", "--timeout=60s", namespace=self.namespace)
        self.look()

    def train(self, fingerprint: str) -> None:
        for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE):
            self.look()
            words = good_summary(stage, 1)
            if stage is Stage.PREPARE:
                summary = Summary.model_validate_json(words)
                assert summary.dataset is not None
                dataset = summary.dataset.model_copy(update={"fingerprint": fingerprint})
                words = summary.model_copy(update={"dataset": dataset}).to_message()
            self.end(f"{GROUP}/stage={stage}", f"travel-r1-{stage.lower()}", words)

    def until_due(self) -> None:
        """The job's own moment after the last look, or after Prepare."""
        job = self.plane.kubectl.get("finetunejob", "travel", namespace=self.namespace)
        assert job is not None
        failures = job["status"]["datasetPoll"].get("failures", 0)
        uid = job["metadata"]["uid"]
        self.now, _ = next_look(uid, self.now, PERIOD, failures, self.now + timedelta(seconds=PERIOD))


def test_a_look_is_made_once_said_when_it_fails_and_starts_a_run_when_the_data_has_changed(plane: ControlPlane) -> None:
    tenant = Tenant(plane, "polls")
    tenant.train("a")
    assert tenant.status()["run"]["dataset"]["fingerprint"] == "a"
    assert tenant.jobs("-poll-") == []

    tenant.until_due()
    tenant.look(writes=1)  # dies with the Job made
    tenant.now += timedelta(seconds=20)
    assert tenant.look() == 0, "another leader finds it, and has nothing to say"
    (first,) = tenant.jobs("-poll-")
    tenant.end(POLL, first, found("a"))
    assert tenant.status()["run"]["number"] == 1
    assert condition(tenant.status(), "DatasetPolled") == ("True", "Planned")
    assert tenant.look() == 0

    tenant.until_due()
    tenant.look()
    plane.kubectl("wait", f"job/{first}", "--for=delete", "--timeout=60s", namespace=tenant.namespace)
    (second,) = tenant.jobs("-poll-")
    assert second != first
    tenant.end(POLL, second, not_found(), exit_code=10)
    status = tenant.status()
    assert condition(status, "DatasetPolled") == ("False", "SourceUnavailable")
    assert condition(status, "Ready") == ("True", "Trained")
    assert status["datasetPoll"]["failures"] == 1
    (told,) = [each["note"] for each in tenant_events(tenant) if each["reason"] == "SourceUnavailable"]
    assert told.startswith(
        "Dataset poll: s3://team/train.jsonl: there is no such object or bucket. Correct the source."
    )

    tenant.until_due()
    tenant.look()
    plane.kubectl("wait", f"job/{second}", "--for=delete", "--timeout=60s", namespace=tenant.namespace)
    (third,) = tenant.jobs("-poll-")
    tenant.kubelet.end(POLL, found("b"))
    plane.kubectl("wait", f"job/{third}", "--for=condition=Complete", "--timeout=60s", namespace=tenant.namespace)
    tenant.look(writes=1)  # dies with the ConfigMap made
    tenant.look(writes=1)  # with the Job, before the status knows
    tenant.look()
    status = tenant.status()
    assert (status["run"]["number"], status["run"]["trigger"], status["run"]["occasion"]) == (2, "DatasetChanged", "b")
    assert tenant.jobs("-prepare") == ["travel-r1-prepare", "travel-r2-prepare"]
    assert condition(status, "DatasetPolled") == ("True", "Planned")
    plane.kubectl("wait", f"job/{third}", "--for=delete", "--timeout=60s", namespace=tenant.namespace)
    started = [each["note"] for each in tenant_events(tenant) if each["reason"] == "RunStarted"]
    assert sorted(started) == ["Run 1 started (Created).", "Run 2 started (DatasetChanged, b)."]


def tenant_events(tenant: Tenant) -> list[dict[str, Any]]:
    items = tenant.plane.kubectl.json("get", "events.events.k8s.io", namespace=tenant.namespace)["items"]
    return [each for each in items if each["regarding"]["kind"] == "FineTuneJob"]
