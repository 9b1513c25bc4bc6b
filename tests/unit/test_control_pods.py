"""What the cache tells of pods that a Job left, and of pods that could not be made."""

from __future__ import annotations

from typing import Any

from finetune_operator.control.cache import Cache
from finetune_operator.control.handlers import kopf_settings, take_event
from finetune_operator.control.observe import observe
from finetune_operator.control.resources import FINE_TUNE_JOB, JOB, POD, POD_REFUSAL, WATCHED, Resource
from finetune_operator.names import LABEL_JOB, LABEL_STAGE

TEAM = "team-a"


def made(resource: Resource, name: str, uid: str, owner: str = "", kind: str = "FineTuneJob") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": TEAM, "uid": uid, "resourceVersion": "1"}
    metadata["labels"] = {LABEL_JOB: "travel"}
    if owner:
        metadata["ownerReferences"] = [{"uid": owner, "controller": True, "kind": kind, "name": f"of-{owner}"}]
    return {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}


def told(name: str, job: str, uid: str, message: str, version: int = 1, **times: Any) -> dict[str, Any]:
    """An Event of the Job controller."""
    metadata = {"name": name, "namespace": TEAM, "uid": f"uid-{name}", "resourceVersion": str(version)}
    metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
    about = {"kind": "Job", "name": job, "uid": uid}
    noise = {"source": {"component": "job-controller"}, "count": 7, "type": "Warning"}
    return {"metadata": metadata, "involvedObject": about, "message": message, **noise, **times}


def filled() -> Cache:
    cache = Cache()
    cache.store(FINE_TUNE_JOB, made(FINE_TUNE_JOB, "travel", "T"))
    cache.store(JOB, made(JOB, "travel-r1-train", "J", owner="T"))
    return cache


def test_a_refusal_reaches_the_job_that_it_concerns_and_the_newest_counts() -> None:
    cache, asked = filled(), list[tuple[str, str]]()
    first = told("a", "travel-r1-train", "J", "first", lastTimestamp="2026-01-01T00:00:01Z")
    second = told("b", "travel-r1-train", "J", "second", eventTime="2026-01-01T00:00:03.000000Z")
    for event in (second, first):
        take_event(cache, POD_REFUSAL, "ADDED", event, asked.append)
    assert asked == [(TEAM, "travel"), (TEAM, "travel")]
    found = observe(cache, "T").refusals["travel-r1-train"]
    assert (found.message, found.time) == ("second", "2026-01-01T00:00:03.000000Z")
    repeated = told("a", "travel-r1-train", "J", "again", 2, lastTimestamp="2026-01-01T00:00:09Z")
    take_event(cache, POD_REFUSAL, "MODIFIED", repeated, asked.append)
    assert observe(cache, "T").refusals["travel-r1-train"].message == "again"
    for event in (second, repeated):
        take_event(cache, POD_REFUSAL, "DELETED", event, asked.append)
    assert not observe(cache, "T").refusals


def test_refusals_of_others_are_not_kept_and_those_of_a_former_job_are_not_ours() -> None:
    cache, asked = filled(), list[tuple[str, str]]()
    take_event(cache, POD_REFUSAL, "ADDED", told("x", "nightly-report", "N", "theirs"), asked.append)
    assert asked == []
    assert list(cache.objects(POD_REFUSAL)) == []
    take_event(cache, POD_REFUSAL, "ADDED", told("y", "travel-r1-train", "earlier", "of another uid"), asked.append)
    assert not observe(cache, "T").refusals


def test_of_an_event_only_what_is_read_is_kept() -> None:
    cache = filled()
    take_event(cache, POD_REFUSAL, "ADDED", told("a", "travel-r1-train", "J", "no"), lambda _: None)
    (kept,) = cache.objects(POD_REFUSAL)
    assert set(kept) == {"kind", "metadata", "involvedObject", "message"}


def test_pods_that_a_job_left_are_seen_though_the_job_has_no_children_yet() -> None:
    cache = Cache()
    cache.store(FINE_TUNE_JOB, made(FINE_TUNE_JOB, "travel", "T"))
    cache.store(POD, made(POD, "left", "P1", owner="gone", kind="Job"))
    observed = observe(cache, "T")
    assert [pod["metadata"]["name"] for pod in observed.former_pods] == ["left"]
    assert observed.pods == []
    cache.store(JOB, made(JOB, "travel-r1-train", "J", owner="T"))
    cache.store(POD, made(POD, "own", "P2", owner="J", kind="Job"))
    cache.store(POD, made(POD, "server", "P3", owner="R", kind="ReplicaSet"))
    observed = observe(cache, "T")
    assert [pod["metadata"]["name"] for pod in observed.pods] == ["own", "server"]
    assert [pod["metadata"]["name"] for pod in observed.former_pods] == ["left"]


def test_a_pod_without_an_owner_is_what_a_job_left_and_a_server_without_one_is_nobodys() -> None:
    """`kubectl delete job --cascade=orphan` leaves a trainer that goes on writing. Labels can be anybody's."""
    cache = filled()
    orphan, server = made(POD, "orphan", "P1"), made(POD, "server", "P2")
    orphan["metadata"]["labels"] |= {LABEL_STAGE: "Train"}
    server["metadata"]["labels"] |= {LABEL_STAGE: "Serve"}
    for pod in (orphan, server):
        cache.store(POD, pod)
    observed = observe(cache, "T")
    assert observed.pods == []
    assert [pod["metadata"]["name"] for pod in observed.former_pods] == ["orphan"]


def test_the_server_sends_no_other_events() -> None:
    found = kopf_settings(WATCHED).watching.field_selectors["", "v1", "events"]
    assert found == "involvedObject.kind=Job,reason=FailedCreate"
