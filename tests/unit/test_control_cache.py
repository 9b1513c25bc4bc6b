"""The cache only moves forward, knows whose a child is, and gets what others' objects are out of the way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_operator import names
from finetune_operator.control.cache import Cache
from finetune_operator.control.handlers import take_event
from finetune_operator.control.observe import observe
from finetune_operator.control.resources import CONFIG_MAP, DEPLOYMENT, FINE_TUNE_JOB, JOB, POD, WORKLOAD, Resource
from finetune_operator.names import LABEL_JOB


def made(
    resource: Resource, name: str, version: int = 1, uid: str = "", owner: str = "", label: str = "", kind: str = ""
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "team-a",
        "uid": uid or f"uid-{name}",
        "resourceVersion": str(version),
    }
    if owner:
        metadata["ownerReferences"] = [{"uid": owner, "controller": True, "kind": kind or "FineTuneJob"}]
    if label:
        metadata["labels"] = {LABEL_JOB: label}
    return {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}


def failed(version: int, uid: str = "a", **others: Any) -> dict[str, Any]:
    """A Job of which every version says something else."""
    return {**made(JOB, "x", version, uid), "status": {"failed": version, **others}}


@pytest.mark.parametrize(
    ("first", "second", "news"),
    [
        ((1, "a"), (2, "a"), True),
        ((2, "a"), (2, "a"), False),
        ((3, "a"), (2, "a"), False),
        ((3, "a"), (4, "b"), True),
        ((4, "b"), (3, "a"), False),
    ],
)
def test_only_what_is_newer_is_news(first: tuple[int, str], second: tuple[int, str], news: bool) -> None:
    cache = Cache()
    assert cache.store(JOB, failed(*first))
    assert cache.store(JOB, failed(*second)) is news
    kept = second if news else first
    found = cache.get(JOB, ("team-a", "x"))
    assert found
    assert (found["metadata"]["resourceVersion"], found["metadata"]["uid"]) == (str(kept[0]), kept[1])


def test_equal_texts_are_one_string() -> None:
    cache = Cache()
    for name in ("x", "y"):  # each event is read by itself
        cache.store(
            JOB, json.loads(json.dumps({**made(JOB, name), "status": {"conditions": [{"message": "It waits."}]}}))
        )
    first, second = (cache.get(JOB, ("team-a", name)) for name in ("x", "y"))
    assert first
    assert second
    assert first["status"]["conditions"][0]["message"] is second["status"]["conditions"][0]["message"]


def test_a_list_tells_of_an_etcd_that_was_restored() -> None:
    cache = Cache()
    cache.store(JOB, failed(900))
    assert not cache.store(JOB, failed(700))  # a watch may be late
    relist = cache.begin_relist(JOB)
    assert ("team-a", "x") not in relist.touched
    assert cache.store(JOB, failed(700), from_watch=False)
    cache.end_relist(JOB, relist)
    assert cache.store(JOB, failed(701))


def test_what_nobody_reads_is_no_news_but_its_version_counts() -> None:
    cache = Cache()
    assert cache.store(JOB, failed(1))
    later = failed(2, active=1, startTime="2026-01-01T00:00:00Z") | {"spec": {"suspend": False}}
    later["status"]["failed"] = 1
    assert not cache.store(JOB, later)
    assert (cache.get(JOB, ("team-a", "x")) or {})["metadata"]["resourceVersion"] == "2"
    later["metadata"]["labels"] = {names.LABEL_QUEUE: "gpus"}
    assert cache.store(JOB, {**later, "metadata": {**later["metadata"], "resourceVersion": "3"}})
    server = {**made(DEPLOYMENT, "serve"), "spec": {"replicas": 1}}
    assert cache.store(DEPLOYMENT, server)
    server["metadata"] = {**server["metadata"], "resourceVersion": "2"}
    assert not cache.store(DEPLOYMENT, {**server})
    server["metadata"] = {**server["metadata"], "resourceVersion": "3"}
    assert cache.store(DEPLOYMENT, {**server, "spec": {"replicas": 2}})


def test_a_deletion_of_a_predecessor_does_not_remove_the_successor() -> None:
    cache = Cache()
    cache.store(JOB, made(JOB, "x", 5, "new"))
    assert not cache.remove(JOB, made(JOB, "x", 6, "old"))
    assert cache.remove(JOB, made(JOB, "x", 7, "new"))
    assert cache.get(JOB, ("team-a", "x")) is None


def test_children_are_found_by_their_owner_and_pods_by_their_label() -> None:
    cache = Cache()
    cache.store(FINE_TUNE_JOB, made(FINE_TUNE_JOB, "travel", uid="T"))
    cache.store(JOB, made(JOB, "travel-r1-train", uid="J", owner="T", label="travel"))
    cache.store(JOB, made(JOB, "foreign", owner="someone", label="travel"))
    pod = made(POD, "p", owner="J", label="travel", kind="Job")
    stale = made(POD, "stale", owner="gone", label="travel", kind="Job")
    cache.store(POD, pod)
    cache.store(POD, stale)
    observed = observe(cache, "T")
    assert list(observed.jobs) == ["travel-r1-train"]
    assert [each["metadata"]["name"] for each in observed.pods] == ["p"]
    cache.remove(JOB, made(JOB, "travel-r1-train", 9, uid="J", owner="T", label="travel"))
    assert not observe(cache, "T").jobs
    assert not observe(cache, "T").pods


def test_an_event_asks_for_a_pass_over_the_job_that_is_concerned_and_an_echo_does_not() -> None:
    cache = Cache()
    asked: list[tuple[str, str]] = []
    job = made(FINE_TUNE_JOB, "travel", uid="T")
    child = made(JOB, "travel-r1-train", owner="T", label="travel")
    pod = made(POD, "p", owner="uid-travel-r1-train", label="travel", kind="Job")
    for resource, body in ((FINE_TUNE_JOB, job), (JOB, child), (POD, pod)):
        take_event(cache, resource, "ADDED", body, asked.append)
        take_event(cache, resource, "MODIFIED", body, asked.append)
    assert asked == [("team-a", "travel")] * 3
    take_event(cache, POD, "DELETED", made(POD, "p", 2, label="travel"), asked.append)
    assert len(asked) == 4
    take_event(cache, POD, "ADDED", made(POD, "q", label="nobody"), asked.append)
    assert len(asked) == 4


def test_what_a_deleted_job_left_concerns_the_new_one_of_its_name_and_is_not_its_own() -> None:
    cache = Cache()
    asked: list[tuple[str, str]] = []
    cache.store(FINE_TUNE_JOB, made(FINE_TUNE_JOB, "travel", 1, uid="old"))
    left = made(JOB, "travel-r1-train", 2, uid="J", owner="old", label="travel")
    pod = made(POD, "p", 3, owner="J", label="travel", kind="Job")
    pod["metadata"]["ownerReferences"][0]["name"] = "travel-r1-train"
    cache.store(JOB, left)
    cache.store(POD, pod)
    assert cache.owner_of(pod) == ("team-a", "travel")
    cache.store(FINE_TUNE_JOB, made(FINE_TUNE_JOB, "travel", 4, uid="new"))
    assert not observe(cache, "new").jobs
    assert cache.owner_of(pod) is None, "the former job's training cannot report on the new one's run"
    assert [each["metadata"]["name"] for each in cache.pods("team-a", "travel")] == ["p"]
    # The new job's children are there; an event of the former one's must not lead astray.
    cache.store(CONFIG_MAP, made(CONFIG_MAP, "travel-r1", 5, owner="new", label="travel"))
    for resource, body, version in ((JOB, left, "6"), (POD, pod, "7")):
        newer = {**body, "metadata": {**body["metadata"], "resourceVersion": version, "deletionTimestamp": "now"}}
        take_event(cache, resource, "MODIFIED", newer, asked.append)
    take_event(cache, JOB, "DELETED", {**left, "metadata": {**left["metadata"], "resourceVersion": "8"}}, asked.append)
    take_event(cache, POD, "DELETED", {**pod, "metadata": {**pod["metadata"], "resourceVersion": "9"}}, asked.append)
    assert asked == [("team-a", "travel")] * 4
    cache.drop(FINE_TUNE_JOB, ("team-a", "travel"))
    assert cache.job_of(pod) is None


def test_a_pod_of_a_job_with_a_long_name_is_found_by_its_cut_label() -> None:
    cache, name = Cache(), "x" * 100
    cache.store(FINE_TUNE_JOB, made(FINE_TUNE_JOB, name, uid="T"))
    assert cache.job_of(made(POD, "p", label=names.cut(name))) == ("team-a", name)


def test_what_nobody_reads_is_not_kept() -> None:
    cache = Cache()
    body = made(JOB, "x")
    body["metadata"]["managedFields"] = [{}]
    body["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b"}
    cache.store(JOB, body)
    found = cache.get(JOB, ("team-a", "x"))
    assert found
    assert "managedFields" not in found["metadata"]
    assert found["metadata"]["annotations"] == {"a": "b"}


def test_the_snapshot_of_a_run_is_kept_for_a_rollback() -> None:
    cache = Cache()
    cache.store(CONFIG_MAP, {**made(CONFIG_MAP, "x-r1"), "data": {"run.json": "{}", "ca.crt": "long"}})
    found = cache.get(CONFIG_MAP, ("team-a", "x-r1"))
    assert found
    assert found["data"] == {"run.json": "{}"}


def test_of_a_pod_its_volumes_are_kept_and_of_a_job_no_spec() -> None:
    cache = Cache()
    volumes = [{"name": "artifacts", "persistentVolumeClaim": {"claimName": "models"}}]
    cache.store(POD, {**made(POD, "p"), "spec": {"volumes": volumes, "containers": [{"name": "main"}]}, "status": {}})
    cache.store(JOB, {**made(JOB, "j"), "spec": {"template": {}}, "status": {"active": 1, "failed": 2}})
    cache.store(FINE_TUNE_JOB, {**made(FINE_TUNE_JOB, "t"), "spec": {"task": "Chat"}})
    pod, job, tuned = (
        cache.get(each, ("team-a", name)) for each, name in ((POD, "p"), (JOB, "j"), (FINE_TUNE_JOB, "t"))
    )
    assert pod
    assert job
    assert tuned
    assert pod["spec"] == {"volumes": volumes}
    assert "spec" not in job
    assert job["status"] == {"failed": 2}
    assert tuned["spec"] == {"task": "Chat"}


def test_what_a_watch_tells_during_a_list_is_newer_than_the_list() -> None:
    cache = Cache()
    relist = cache.begin_relist(JOB)
    cache.store(JOB, made(JOB, "born", 7))
    cache.store(JOB, made(JOB, "from-list", 3), from_watch=False)
    cache.remove(JOB, made(JOB, "died", 8))
    assert relist.touched == {("team-a", "born"), ("team-a", "died")}
    cache.end_relist(JOB, relist)
    cache.store(JOB, made(JOB, "later", 9))
    assert ("team-a", "later") not in relist.touched


def test_a_workload_belongs_to_the_finetunejob_whose_job_it_is_of_and_others_are_not_kept() -> None:
    cache = Cache()
    asked: list[tuple[str, str]] = []
    cache.store(FINE_TUNE_JOB, made(FINE_TUNE_JOB, "travel", uid="T"))
    cache.store(JOB, made(JOB, "travel-r1-train", uid="J", owner="T", label="travel"))
    condition = {"type": "QuotaReserved", "status": "False", "message": "no room"}

    def workload(name: str, job: str, uid: str) -> dict[str, Any]:
        owner = {"kind": "Job", "name": job, "uid": uid, "controller": True}
        meta = {"namespace": "team-a", "name": name, "uid": f"uid-{name}", "resourceVersion": "1"}
        spec = {"active": True, "podSets": [{"name": "main", "template": {}}]}
        body = {"metadata": {**meta, "ownerReferences": [owner]}, "spec": spec}
        return {**body, "status": {"conditions": [condition], "admission": {}}}

    take_event(cache, WORKLOAD, "ADDED", workload("job-a", "travel-r1-train", "J"), asked.append)
    take_event(cache, WORKLOAD, "ADDED", workload("job-b", "somebodys", "X"), asked.append)
    take_event(cache, WORKLOAD, "ADDED", workload("job-c", "travel-r1-train", "former"), asked.append)
    assert asked == [("team-a", "travel")]
    assert cache.names(WORKLOAD) == [("team-a", "job-a")]
    found = observe(cache, "T").workloads["travel-r1-train"]
    assert found["status"] == {"conditions": [condition]}
    assert found["spec"] == {"active": True}
    take_event(
        cache, WORKLOAD, "DELETED", {"kind": "Workload", **workload("job-a", "travel-r1-train", "J")}, asked.append
    )
    assert observe(cache, "T").workloads == {}


def test_who_goes_on_from_a_job_is_told_of_it() -> None:
    cache = Cache()
    told: list[tuple[str, str]] = []
    waiting = made(FINE_TUNE_JOB, "polite")
    waiting["spec"] = {"baseModel": {"fineTuneJob": {"name": "chat"}}}
    cache.store(FINE_TUNE_JOB, waiting)
    assert cache.dependents(("team-a", "chat")) == [("team-a", "polite")]
    assert cache.dependents(("team-b", "chat")) == []
    take_event(cache, FINE_TUNE_JOB, "ADDED", made(FINE_TUNE_JOB, "chat"), told.append)
    assert told == [("team-a", "chat"), ("team-a", "polite")]
    take_event(cache, FINE_TUNE_JOB, "DELETED", made(FINE_TUNE_JOB, "chat"), told.append)
    assert told[2:] == [("team-a", "chat"), ("team-a", "polite")]
    other = {**made(FINE_TUNE_JOB, "polite", 2), "spec": {"baseModel": {"source": "hf://a/b"}}}
    cache.store(FINE_TUNE_JOB, other)
    assert cache.dependents(("team-a", "chat")) == []
