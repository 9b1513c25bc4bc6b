"""From facts to reasons, one row a fact. What a person reads comes from the cluster's own words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api.conditions import FailureReason as Reason
from finetune_api.conditions import Stage
from finetune_api.reasons import REASONS
from finetune_api.reports import StageFailure, Summary
from finetune_operator import names
from finetune_operator.advice import advice_for
from finetune_operator.diagnose import (
    Finding,
    current,
    deployment_trouble,
    first_finding,
    job_failure,
    last_summary,
    look_again_after,
    pod_trouble,
    refused_pod,
    spent,
    summary_of,
    to_failure,
)
from finetune_operator.plan import PodRefusal
from finetune_operator.times import stamp

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
Pod = dict[str, Any]


def pod(created: int = 0, **status: Any) -> Pod:
    meta = {"name": f"p{created}", "creationTimestamp": f"2026-01-01T11:00:{created:02d}Z"}
    return {"metadata": meta, "spec": {}, "status": status}


def container(**states: Any) -> list[dict[str, Any]]:
    return [{"name": "main", **states}]


def ended(code: int, reason: str = "Error", message: str = "", created: int = 0) -> Pod:
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return pod(created, phase="Failed" if code else "Succeeded", containerStatuses=container(state=state))


def waiting(reason: str, message: str = "why") -> Pod:
    return pod(phase="Pending", containerStatuses=container(state={"waiting": {"reason": reason, "message": message}}))


def condition(kind: str, status: str, **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": "2026-01-01T11:00:00Z", **more}


def said(reason: Reason, text: str = "in its own words") -> str:
    failure = StageFailure(reason=reason, message=text, advice="Do that.")
    return Summary(stage=Stage.TRAIN, ok=False, failure=failure).to_message()


def unscheduled(message: str, reason: str = "Unschedulable") -> Pod:
    return pod(phase="Pending", conditions=[condition("PodScheduled", "False", reason=reason, message=message)])


def on_node(*, ready: bool = True, condition: str = "True", deleted: str | None = None) -> Pod:
    """A pod that runs on the node gpu-7, as its kubelet and the node controller have it."""
    states = container(state={"running": {"startedAt": "x"}}, ready=ready)
    conditions = [{"type": "Ready", "status": condition, "lastTransitionTime": "2026-01-01T11:00:00Z"}]
    found = pod(phase="Running", containerStatuses=states, conditions=conditions)
    meta = {**found["metadata"], **({"deletionTimestamp": deleted} if deleted else {})}
    return {**found, "metadata": meta, "spec": {"nodeName": "gpu-7"}}


FACTS: list[tuple[str, Pod, Reason | None, str]] = [
    ("own words win", ended(11, message=said(Reason.CUDA_OUT_OF_MEMORY)), Reason.CUDA_OUT_OF_MEMORY, "own words"),
    ("a full disk by its words", ended(1, message=said(Reason.STORAGE_FULL)), Reason.STORAGE_FULL, "own words"),
    ("a full disk by its log", ended(1, message="OSError: No space left on device"), Reason.STORAGE_FULL, "No space"),
    ("killed by its limit", ended(137, "OOMKilled"), Reason.OUT_OF_MEMORY, "OOMKilled"),
    ("killed otherwise", ended(137), Reason.OUT_OF_MEMORY, "137"),
    ("exit 10", ended(10), Reason.SPEC_INVALID, "10"),
    ("exit 11", ended(11), Reason.CUDA_OUT_OF_MEMORY, "11"),
    ("exit 12", ended(12), Reason.LOSS_NOT_FINITE, "12"),
    ("exit 13", ended(13), Reason.ARTIFACT_INVALID, "13"),
    ("exit 75", ended(75), Reason.INTERRUPTED, "75"),
    ("a crash tells the end of its log", ended(1, message="Traceback ... KeyError"), Reason.SYSTEM_FAULT, "KeyError"),
    ("garbage in the message", ended(1, message="{"), Reason.SYSTEM_FAULT, "exit code 1"),
    ("success is no trouble", ended(0, "Completed"), None, ""),
    ("evicted", pod(phase="Failed", reason="Evicted", message="low on memory"), Reason.EVICTED, "low on memory"),
    (
        "preempted",
        pod(conditions=[condition("DisruptionTarget", "True", reason="PreemptionByScheduler", message="preempted")]),
        Reason.INTERRUPTED,
        "PreemptionByScheduler",
    ),
    ("deleted", {**pod(), "metadata": {"name": "p", "deletionTimestamp": "x"}}, Reason.INTERRUPTED, "deleted"),
    ("a node that does not answer", on_node(ready=True, condition="False"), Reason.NODE_LOST, "gpu-7"),
    ("a server that is not ready yet", on_node(ready=False, condition="False"), None, ""),
    ("a node that does not confirm", on_node(deleted="2026-01-01T11:58:00Z"), Reason.NODE_LOST, "11:58:00Z"),
    ("a pod that is saving", on_node(deleted="2026-01-01T12:01:00Z"), Reason.INTERRUPTED, "deleted"),
    ("a pod that is about to be gone", on_node(deleted="2026-01-01T11:59:30Z"), Reason.INTERRUPTED, "deleted"),
    ("no GPU", unscheduled("0/3 nodes: 3 Insufficient nvidia.com/gpu."), Reason.UNSCHEDULABLE, "nvidia.com/gpu"),
    ("unbound", unscheduled("pod has unbound immediate PersistentVolumeClaims."), Reason.STORAGE_UNBOUND, "unbound"),
    ("no claim", unscheduled('persistentvolumeclaim "x" not found'), Reason.STORAGE_UNBOUND, '"x"'),
    ("wrong zone", unscheduled("1 node(s) had volume node affinity conflict"), Reason.STORAGE_UNBOUND, "affinity"),
    ("gated is not trouble", unscheduled("", reason="SchedulingGated"), None, ""),
    *((reason, waiting(reason), Reason.IMAGE_PULL, reason) for reason in ("ErrImagePull", "ImagePullBackOff")),
    ("bad image name", waiting("InvalidImageName"), Reason.IMAGE_PULL, "InvalidImageName"),
    ("no secret", waiting("CreateContainerConfigError", 'secret "t" not found'), Reason.CONFIG_MISSING, 'secret "t"'),
    ("the runtime refuses", waiting("CreateContainerError"), Reason.SYSTEM_FAULT, "CreateContainerError"),
    ("being created", waiting("ContainerCreating", ""), None, ""),
    ("just born", pod(phase="Pending"), None, ""),
    ("no status at all", {"metadata": {"name": "p"}}, None, ""),
    ("running", pod(phase="Running", containerStatuses=container(state={"running": {"startedAt": "x"}})), None, ""),
]


@pytest.mark.parametrize(("fact", "reason", "words"), [row[1:] for row in FACTS], ids=[row[0] for row in FACTS])
def test_a_fact_has_its_reason(fact: Pod, reason: Reason | None, words: str) -> None:
    finding = first_finding(fact, NOW)
    assert (finding and finding.reason) == reason
    assert finding is None or words in finding.message


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_one_sentence_of_advice(reason: Reason) -> None:
    text = advice_for(reason)
    assert text == REASONS[reason].advice
    assert text.endswith(".")
    assert 20 < len(text) < 300


def test_the_advice_for_a_missing_gpu_names_the_resource_and_the_fields() -> None:
    text = advice_for(Reason.UNSCHEDULABLE, "0/3 nodes are available: 1 Insufficient amd.com/gpu, 2 Insufficient cpu.")
    for word in ("amd.com/gpu", "compute.gpuResource", "compute.nodeSelector", "compute.tolerations"):
        assert word in text


def test_since_stays_while_the_same_thing_is_wrong() -> None:
    finding = Finding(Reason.IMAGE_PULL, "ErrImagePull")
    first = to_failure(finding, Stage.TRAIN, "2026-01-01T00:00:00Z", waiting=True, previous=None)
    later = to_failure(finding, Stage.TRAIN, "2026-01-01T01:00:00Z", waiting=True, previous=first)
    other = to_failure(finding, Stage.SERVE, "2026-01-01T02:00:00Z", waiting=True, previous=later)
    assert (first.since, later.since, other.since) == (first.since, first.since, "2026-01-01T02:00:00Z")


def test_long_texts_are_cut_to_the_bounds_of_the_status() -> None:
    failure = to_failure(
        Finding(Reason.SYSTEM_FAULT, "x" * 9999, "y" * 9999), Stage.TRAIN, stamp(NOW), waiting=False, previous=None
    )
    assert (len(failure.message), len(failure.advice)) == (1024, 1024)
    assert type(failure).model_validate(failure.model_dump()) == failure


def test_the_newest_pod_speaks() -> None:
    pods = [ended(1, created=1), ended(137, "OOMKilled", created=3), ended(1, created=2)]
    assert [pod["metadata"]["name"] for pod in current(pods)] == ["p3"]
    trouble = pod_trouble(pods, NOW)
    assert trouble is not None
    assert trouble.reason is Reason.OUT_OF_MEMORY


def of_gang(index: int, fact: Pod) -> Pod:
    labels = {"batch.kubernetes.io/job-completion-index": str(index)}
    return {**fact, "metadata": {**fact["metadata"], "labels": labels}}


LOST = ended(1, message="NCCL: a peer is gone")


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        (ended(137, "OOMKilled"), Reason.OUT_OF_MEMORY),
        (waiting("ErrImagePull"), Reason.IMAGE_PULL),
        (unscheduled("1 Insufficient nvidia.com/gpu."), Reason.UNSCHEDULABLE),
        (ended(75), Reason.SYSTEM_FAULT),  # both are consequences: that which does not wait
    ],
)
def test_of_a_gang_the_cause_speaks_and_not_what_it_did_to_the_others(fact: Pod, reason: Reason) -> None:
    gang = [of_gang(0, LOST), of_gang(1, fact), of_gang(2, LOST)]
    trouble = pod_trouble(gang, NOW)
    assert trouble is not None
    assert trouble.reason is reason


def test_of_a_gang_each_members_newest_pod_counts() -> None:
    old = [of_gang(index, ended(137, "OOMKilled", created=1)) for index in range(11)]
    new = [of_gang(index, pod(created=2, phase="Running")) for index in range(11)]
    assert current([*new, *old]) == new
    assert pod_trouble([*new, *old], NOW) is None


def test_a_gang_that_fell_together_is_one_attempt() -> None:
    first = [of_gang(index, ended(1, created=1)) for index in range(3)]
    assert spent(first, failed=3) == 1
    assert spent([*first, of_gang(1, ended(1, created=2)), of_gang(0, pod(created=3))], failed=4) == 2
    assert spent([], failed=2) == 2  # the pods are gone: one pod a generation is what is known
    assert spent([pod()], failed=0) == 0


def test_a_final_code_of_one_member_is_left_to_the_jobs_own_end() -> None:
    gang = [of_gang(0, LOST), of_gang(1, ended(11))]
    assert pod_trouble(gang, NOW) is None
    finding = job_failure(job("PodFailurePolicy", "exit code 11 "), gang, NOW)
    assert finding.reason is Reason.CUDA_OUT_OF_MEMORY


def test_a_member_that_is_refused_is_told_while_the_others_wait() -> None:
    refusal = PodRefusal("Error creating: exceeded quota: gpus", "2026-01-01T11:30:00Z")
    told = refused_pod(refusal, [of_gang(0, pod(created=1, phase="Running"))], NOW)
    assert told is not None
    assert told.reason is Reason.QUOTA_EXCEEDED
    assert refused_pod(refusal, [pod(created=1, phase="Running")], NOW) is None


@pytest.mark.parametrize("code", [10, 11, 12, 13])
def test_a_final_exit_code_is_left_to_the_jobs_own_end(code: int) -> None:
    assert pod_trouble([ended(code)], NOW) is None


def job(reason: str, message: str, failed: int = 1) -> dict[str, Any]:
    entry = condition("Failed", "True", reason=reason, message=message)
    return {"metadata": {"name": "j"}, "status": {"failed": failed, "conditions": [entry]}}


def test_a_job_that_gave_up_says_why_its_last_pod_failed_and_how_often() -> None:
    pods = [ended(1, created=1), ended(137, "OOMKilled", created=2)]
    finding = job_failure(job("BackoffLimitExceeded", "limit", failed=4), pods, NOW)
    assert finding.reason is Reason.OUT_OF_MEMORY
    assert "4 times" in finding.message


@pytest.mark.parametrize(
    ("stage", "advice"),
    [("Prepare", "Do that; then set a new spec.rerunToken to try again"), ("Poll", "Do that.")],
)
def test_a_run_that_ended_for_something_outside_says_how_to_begin_anew(stage: str, advice: str) -> None:
    failed = job("BackoffLimitExceeded", "limit", failed=4)
    failed["metadata"]["labels"] = {names.LABEL_STAGE: stage}
    finding = job_failure(failed, [ended(1, message=said(Reason.SOURCE_UNAVAILABLE, "it does not answer"))], NOW)
    assert finding.message == "it does not answer. It was tried 4 times."
    assert finding.advice == advice


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("DeadlineExceeded", "Job was active longer than specified deadline", Reason.DEADLINE_EXCEEDED),
        ("PodFailurePolicy", "Container main failed with exit code 11 matching FailJob", Reason.CUDA_OUT_OF_MEMORY),
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", Reason.SYSTEM_FAULT),
    ],
)
def test_a_job_whose_pods_are_gone_still_has_a_reason(reason: str, message: str, expected: Reason) -> None:
    finding = job_failure(job(reason, message), [], NOW)
    assert (finding.reason, finding.message) == (expected, message)


def test_only_a_good_summary_of_a_successful_pod_counts() -> None:
    good = Summary(stage=Stage.TRAIN, ok=True, run=1)
    bad = Summary(stage=Stage.TRAIN, ok=False, run=1)
    assert summary_of([ended(1, message=good.to_message())]) is None
    assert summary_of([ended(0, message=bad.to_message())]) is None
    assert summary_of([ended(0, message="Done.")]) is None
    assert summary_of([ended(0, message=good.to_message()), ended(1, created=5)]) == good
    assert last_summary([ended(10, message=bad.to_message())]) == bad
    assert last_summary([pod(phase="Pending")]) is None


@pytest.mark.parametrize(("age", "again"), [(0, 61.0), (59, 2.0), (61, None)])
def test_a_pod_without_its_volumes_is_looked_at_again(age: int, again: float | None) -> None:
    since = (NOW - timedelta(seconds=age)).isoformat()
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": since}
    sandbox = {"type": "PodReadyToStartContainers", "status": "False"}
    fact = pod(phase="Pending", conditions=[scheduled, sandbox])
    assert look_again_after([fact], NOW) == again
    assert (first_finding(fact, NOW) is None) == (again is not None)


def test_a_server_that_is_only_starting_is_no_trouble() -> None:
    starting = pod(phase="Running", containerStatuses=container(state={"running": {"startedAt": "x"}}))
    progressing = {"status": {"conditions": [condition("Progressing", "True", reason="ReplicaSetUpdated")]}}
    assert deployment_trouble(progressing, [starting], NOW) is None


def test_a_claim_that_cannot_be_attached_is_storage() -> None:
    scheduled = condition("PodScheduled", "True")
    fact = pod(phase="Pending", conditions=[scheduled, condition("PodReadyToStartContainers", "False")])
    fact["spec"]["volumes"] = [
        {"name": "config", "configMap": {"name": "travel-r1"}},
        {"name": "artifacts", "persistentVolumeClaim": {"claimName": "models"}},
    ]
    finding = first_finding(fact, NOW)
    assert finding is not None
    assert finding.reason is Reason.STORAGE_UNBOUND
    assert "models" in finding.message


def test_the_cause_of_a_failed_pull_is_kept_while_the_kubelet_waits() -> None:
    cause, pause = (
        Finding(Reason.IMAGE_PULL, "ErrImagePull: not found"),
        Finding(Reason.IMAGE_PULL, "ImagePullBackOff: x"),
    )
    first = to_failure(pause, Stage.TRAIN, stamp(NOW), waiting=True, previous=None)
    second = to_failure(cause, Stage.TRAIN, stamp(NOW), waiting=True, previous=first)
    third = to_failure(pause, Stage.TRAIN, stamp(NOW), waiting=True, previous=second)
    assert [f.message for f in (first, second, third)] == [pause.message, cause.message, cause.message]


def test_a_server_that_was_started_again_is_in_trouble_until_it_is_ready() -> None:
    last = {"terminated": {"exitCode": 1, "reason": "Error", "message": "boom"}}
    status = container(state={"running": {"startedAt": "x"}}, lastState=last)
    again = pod(phase="Running", containerStatuses=status)
    finding = deployment_trouble({}, [again], NOW)
    assert finding is not None
    assert finding.reason is Reason.NOT_READY
    again["status"]["conditions"] = [condition("Ready", "True")]
    assert deployment_trouble({}, [again], NOW) is None
