"""The words of pods that no watch has told of: waited for, then read once, and then nobody knows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.lives import World, run_lives
from tests.scenarios import SCENARIOS
from tests.unit.test_control_cache import made
from tests.unit.test_control_crashes import clean, outcome

from finetune_operator.control import last_words
from finetune_operator.control.api_client import ApiError
from finetune_operator.control.cache import Cache
from finetune_operator.control.last_words import GRACE_SECONDS, LastWords
from finetune_operator.control.resources import FINE_TUNE_JOB, JOB, POD, Resource

NAME = ("team-a", "travel")


class Pods:
    """An API server that has these pods; what happens while it answers is the test's."""

    def __init__(self, *pods: dict[str, Any]) -> None:
        self.pods = list(pods)
        self.asked: list[tuple[str, str | None, str]] = []
        self.meanwhile = lambda: None

    async def list(self, resource: Resource, namespace: str | None, labels: str = "") -> AsyncIterator[dict[str, Any]]:
        self.asked.append((resource.plural, namespace, labels))
        self.meanwhile()
        for pod in self.pods:
            yield pod


def pod(name: str, version: int, phase: str) -> dict[str, Any]:
    body = made(POD, name, version, owner="J", label="travel", kind="Job")
    return {**body, "status": {"phase": phase}}


def known(*pods: dict[str, Any]) -> Cache:
    cache = Cache()
    cache.store(FINE_TUNE_JOB, made(FINE_TUNE_JOB, "travel", uid="T"))
    cache.store(JOB, made(JOB, "travel-r1-train", 5, uid="J", owner="T", label="travel"))
    for each in pods:
        cache.store(POD, each)
    return cache


def phases(cache: Cache) -> dict[str, str]:
    return {each["metadata"]["name"]: each["status"]["phase"] for each in cache.pods(*NAME)}


def jobs(cache: Cache) -> list[dict[str, Any]]:
    return [each for each in cache.children("T") if each["kind"] == JOB.kind]


def test_the_watch_has_its_time_and_then_the_pods_are_read_once() -> None:
    cache, api, clock = known(pod("a", 1, "Running"), pod("gone", 1, "Running")), Pods(pod("a", 2, "Failed")), [100.0]
    words = LastWords(api, cache, lambda: clock[0])  # type: ignore[arg-type]

    async def seek() -> float:
        return await words.seek(NAME, jobs(cache))

    assert words.unread(NAME, jobs(cache)) == {"J"}
    assert asyncio.run(seek()) == GRACE_SECONDS
    clock[0] += 4
    assert asyncio.run(seek()) == GRACE_SECONDS - 4
    assert api.asked == []
    clock[0] += GRACE_SECONDS
    assert asyncio.run(seek()) == 0
    assert api.asked == [("pods", "team-a", "finetune-operator.io/job=travel")]
    assert phases(cache) == {"a": "Failed"}, "what was not listed is gone"
    assert words.unread(NAME, jobs(cache)) == set()


def test_what_was_found_in_time_is_waited_for_anew_the_next_time() -> None:
    cache, api, clock = known(), Pods(), [100.0]
    words = LastWords(api, cache, lambda: clock[0])  # type: ignore[arg-type]
    asyncio.run(words.seek(NAME, jobs(cache)))
    words.found(NAME)
    clock[0] += 60
    assert asyncio.run(words.seek(NAME, jobs(cache))) == GRACE_SECONDS
    assert api.asked == []


def test_a_job_that_goes_on_to_end_is_read_again_and_so_is_one_of_the_same_name() -> None:
    cache, clock = known(), [100.0]
    words = LastWords(Pods(), cache, lambda: clock[0])  # type: ignore[arg-type]

    async def read() -> None:
        await words.seek(NAME, jobs(cache))
        clock[0] += GRACE_SECONDS
        await words.seek(NAME, jobs(cache))

    asyncio.run(read())
    assert words.unread(NAME, jobs(cache)) == set()
    cache.store(JOB, made(JOB, "travel-r1-train", 6, uid="J", owner="T", label="travel"))
    assert words.unread(NAME, jobs(cache)) == {"J"}, "its pods were listed before it came to this"
    asyncio.run(read())
    words.forget(NAME)
    assert words.unread(NAME, jobs(cache)) == {"J"}


def test_what_the_watch_tells_meanwhile_is_newer_than_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_words, "GRACE_SECONDS", 0.0)
    cache = known(pod("a", 1, "Running"))
    api = Pods(pod("a", 1, "Running"))
    api.meanwhile = lambda: (cache.store(POD, pod("a", 3, "Failed")), cache.store(POD, pod("b", 4, "Pending")))[0]  # type: ignore[assignment,return-value]
    asyncio.run(LastWords(api, cache).seek(NAME, jobs(cache)))  # type: ignore[arg-type]
    assert phases(cache) == {"a": "Failed", "b": "Pending"}


def test_what_the_watch_tells_late_is_older_than_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by `make soak`: the pod's first event came while its end was being read."""
    monkeypatch.setattr(last_words, "GRACE_SECONDS", 0.0)
    cache, api = known(pod("b", 1, "Running")), Pods(pod("a", 5, "Succeeded"), pod("b", 1, "Running"))

    def late() -> None:
        cache.store(POD, pod("a", 3, "Pending"))
        cache.remove(POD, pod("b", 6, "Succeeded"))

    api.meanwhile = late
    asyncio.run(LastWords(api, cache).seek(NAME, jobs(cache)))  # type: ignore[arg-type]
    assert phases(cache) == {"a": "Succeeded"}


def test_without_an_answer_nothing_counts_as_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_words, "GRACE_SECONDS", 0.0)

    def refuse() -> None:
        raise ApiError(503, "Unavailable", "not ready")

    cache, api = known(pod("a", 1, "Running")), Pods()
    api.meanwhile = refuse
    words = LastWords(api, cache)  # type: ignore[arg-type]
    with pytest.raises(ApiError):
        asyncio.run(words.seek(NAME, jobs(cache)))
    assert words.unread(NAME, jobs(cache)) == {"J"}
    assert phases(cache) == {"a": "Running"}


def deaf(world: World) -> World:
    """Of its pods no watch tells anything, ever."""
    tell = world.server._tell
    world.server._tell = lambda kind, key: None if key[0] == POD.kind else tell(kind, key)  # type: ignore[method-assign]
    return world


@pytest.mark.parametrize("name", ["served", "data refused", "interrupted", "a gang", "judged and exported"])
def test_with_no_word_of_any_pod_it_ends_as_with_all_of_them(name: str) -> None:
    assert outcome(run_lives(deaf(SCENARIOS[name].world()))) == outcome(clean(name))


def test_where_the_pods_are_gone_the_exit_code_is_the_verdict() -> None:
    world = deaf(SCENARIOS["data refused"].world())
    server = world.server

    def failed() -> bool:
        return any(each.get("status", {}).get("failed") for each in server.objects.values())

    world.script = [(lambda server: failed(), lambda server: server.pods.clear())]
    status = run_lives(world).job.status
    assert status.run is not None
    assert status.run.failure is not None
    assert (status.run.failure.reason, status.run.failure.waiting) == ("SpecInvalid", False)
    assert "exit code 10" in status.run.failure.message
