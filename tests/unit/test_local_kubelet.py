"""Jobs on one machine end as they would on a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from tests.simulator import good_summary, make_job

from finetune_api.conditions import Stage
from finetune_api.job import run_hash
from finetune_api.status import RunStatus
from finetune_operator.builders.stage_job import stage_job
from finetune_operator.diagnose.facts import gpus_of, held_since, held_until
from finetune_operator.local import kubelet
from finetune_operator.settings import Settings

NOW = "2026-01-01T00:00:00Z"
SETTINGS = Settings(backoff_limit=1)


def a_job() -> dict[str, Any]:
    job = make_job()
    run = RunStatus(number=1, hash=run_hash(job.spec), trigger="Created")
    return kubelet.created(stage_job(job, run, Stage.TRAIN, SETTINGS), "uid-1", NOW)


def after(*exit_codes: int | None) -> dict[str, Any]:
    """The Job after pods with these exit codes; None: still running."""
    job = a_job()
    pods = []
    for number, code in enumerate(exit_codes, 1):
        pod = kubelet.running(kubelet.new_pod(job, number, f"pod-{number}", NOW), 1, NOW)
        pods.append(pod if code is None else kubelet.ended(pod, code, "", NOW))
    return kubelet.with_status(job, pods, NOW)


def test_a_process_tells_from_when_to_when_it_held_how_many_gpus() -> None:
    job = make_job(compute={"gpus": 2})
    run = RunStatus(number=1, hash=run_hash(job.spec), trigger="Created")
    owner = kubelet.created(stage_job(job, run, Stage.TRAIN, SETTINGS), "uid-1", NOW)
    pod = kubelet.running(kubelet.new_pod(owner, 1, "pod-1", NOW), 1, NOW)
    assert (gpus_of(pod, "nvidia.com/gpu"), held_since(pod), held_until(pod)) == (2, NOW, None)
    over = kubelet.ended(pod, 75, "", "2026-01-01T01:00:00Z")
    assert (held_since(over), held_until(over)) == (NOW, "2026-01-01T01:00:00Z")


@pytest.mark.parametrize(
    ("exit_codes", "kind", "reason"),
    [
        ((0,), "Complete", ""),
        ((10,), "Failed", "PodFailurePolicy"),
        ((11,), "Failed", "PodFailurePolicy"),
        ((12,), "Failed", "PodFailurePolicy"),
        ((13,), "Failed", "PodFailurePolicy"),
        ((1, 1), "Failed", "BackoffLimitExceeded"),
        ((75, 73), "Failed", "PodFailurePolicy"),  # a full disk: here whoever reads it has to make room
        ((-9, 1), "Failed", "BackoffLimitExceeded"),
        ((75, 75, 75, 0), "Complete", ""),
        ((1, 0), "Complete", ""),
    ],
)
def test_what_ends_a_job(exit_codes: tuple[int, ...], kind: str, reason: str) -> None:
    condition = after(*exit_codes)["status"]["conditions"][0]
    assert (condition["type"], condition["status"], condition["reason"]) == (kind, "True", reason)


@pytest.mark.parametrize(
    ("exit_codes", "failed"), [((), 0), ((None,), 0), ((1,), 1), ((75, 75, 75), 0), ((75, 1, None), 1)]
)
def test_what_does_not_end_a_job(exit_codes: tuple[int | None, ...], failed: int) -> None:
    job = after(*exit_codes)
    assert not kubelet.is_finished(job)
    assert job["status"]["failed"] == failed


def test_a_signal_is_told_as_the_kubelet_tells_it() -> None:
    pod = kubelet.ended(kubelet.new_pod(a_job(), 1, "pod", NOW), -9, "x" * 5000, NOW)
    assert kubelet.exit_code_of(pod) == 137
    message = pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    assert len(message) == kubelet.MESSAGE_BYTES


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("", 75),
        ("killed in the middle of a wo", 75),
        (good_summary("Train", 1), 0),
        ('{"stage": "Train", "ok": false, "failure": {"reason": "SystemFault", "message": "x"}}', 1),
    ],
)
def test_a_stage_that_ended_unseen_is_judged_by_its_last_words(message: str, code: int) -> None:
    assert kubelet.presumed_exit_code(message) == code
