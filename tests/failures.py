"""Stages that fail in the simulator's cluster, and what the status says of it."""

from __future__ import annotations

from typing import Any

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import StageFailure, Summary
from finetune_api.status import Failure, FineTuneJobStatus
from tests.simulator import Cluster, Manifest, make_job, succeed


def fail_in(stage: str, code: int, message: str = "") -> Any:
    def answer(pod: Manifest) -> tuple[int, str]:
        here = pod["metadata"]["labels"]["finetune-operator.io/stage"] == stage
        return (code, message) if here else succeed(pod)

    return answer


def failed_summary(stage: Stage, reason: FailureReason, message: str, advice: str = "", **parts: Any) -> str:
    failure = StageFailure(reason=reason, message=message, advice=advice)
    return Summary(stage=stage, ok=False, run=1, failure=failure, **parts).to_message()


def failure_of(status: FineTuneJobStatus) -> Failure:
    assert status.run is not None
    assert status.run.failure is not None
    return status.run.failure


def no_failure(status: FineTuneJobStatus) -> bool:
    return status.run is not None and status.run.failure is None


def started(stage: str, **spec: Any) -> Cluster:
    """A cluster where the stage's pod has just been created."""
    cluster = Cluster(make_job(**spec))
    return cluster.run(
        until=lambda c: (
            bool(c.pods)
            and c.pods[-1]["status"] == {"phase": "Pending"}
            and c.pods[-1]["metadata"]["labels"]["finetune-operator.io/stage"] == stage
        )
    )
