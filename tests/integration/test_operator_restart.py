"""The operator dies at every write, on a real API server, and makes everything once all the same.

And a relist finds what no watch told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.control_plane import ControlPlane
from tests.operator_process import (
    GROUP,
    PATIENCE,
    Kubelet,
    children,
    condition,
    job_manifest,
    make_namespace,
    running_operator,
    status_of,
    wait_idle,
)
from tests.simulator import good_summary
from tests.single_life import living, look

from finetune_api.conditions import ExitCode, FailureReason, Stage
from finetune_api.reports import StageFailure, Summary
from finetune_operator.control import last_words
from finetune_operator.control.api_client import Api
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.resources import FINE_TUNE_JOB, JOB, WATCHED
from finetune_operator.control.resync import Resync
from finetune_operator.control.server_clock import ServerClock

CHILDREN = [
    ("ConfigMap", "travel-r1"),
    ("Deployment", "travel-serve"),
    ("Job", "travel-r1-evaluate"),
    ("Job", "travel-r1-prepare"),
    ("Job", "travel-r1-train"),
    ("Service", "travel-serve"),
]


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_an_operator_that_dies_after_every_few_writes_makes_everything_once(plane: ControlPlane, writes: int) -> None:
    namespace = make_namespace(plane, f"dying-{writes}")
    kubelet = Kubelet(plane, namespace)
    plane.kubectl.apply(job_manifest("travel", namespace))
    seen: dict[tuple[str, str], str] = {}
    for stage in ("Prepare", "Train", "Evaluate", "Serve"):
        lives = 0
        while look(plane, namespace, writes=writes):
            lives += 1
            assert lives < 30, "it writes for ever"
        for kind, name, uid in children(plane, namespace):
            assert seen.setdefault((kind, name), uid) == uid, f"{kind} {name} was made twice"
        selector = f"{GROUP}/job=travel,{GROUP}/stage={stage}"
        if stage == "Serve":
            kubelet.run(selector)
        else:
            kubelet.end(selector, good_summary(stage, 1))
            name = f"travel-r1-{stage.lower()}"
            plane.kubectl("wait", "--for=condition=Complete", f"job/{name}", "--timeout=60s", namespace=namespace)

    def ready() -> bool:
        look(plane, namespace, writes=writes)
        return condition(status_of(plane, namespace, "travel"), "Ready")[0] == "True"

    plane.kubectl.wait_until(ready, PATIENCE, "Ready", namespace)
    status = status_of(plane, namespace, "travel")
    assert [record["result"] for record in status["runs"]] == ["Promoted"]
    assert sorted(seen) == CHILDREN


def test_a_process_that_is_killed_goes_on_where_it_was(plane: ControlPlane, tmp_path: Path) -> None:
    namespace = make_namespace(plane, "killed")
    kubelet = Kubelet(plane, namespace)
    for number, stage in enumerate(("Prepare", "Train", "Evaluate")):
        with running_operator(plane, tmp_path, name=f"life-{number}", FINETUNE_WATCH_NAMESPACES=namespace):
            plane.kubectl.apply(job_manifest("travel", namespace))
            pod = kubelet.pod(f"{GROUP}/job=travel,{GROUP}/stage={stage}")
        # killed: the stage ends while nobody watches
        kubelet.end(f"{GROUP}/job=travel,{GROUP}/stage={stage}", good_summary(stage, 1))
        assert pod["metadata"]["labels"][f"{GROUP}/attempt"] == "1"
    with running_operator(plane, tmp_path, name="last", FINETUNE_WATCH_NAMESPACES=namespace):
        kubelet.run(f"{GROUP}/job=travel,{GROUP}/stage=Serve")
        plane.kubectl.wait_until(
            lambda: condition(status_of(plane, namespace, "travel"), "Ready")[0] == "True", PATIENCE, "Ready", namespace
        )
    assert [each[:2] for each in children(plane, namespace)] == CHILDREN


def test_a_relist_prunes_what_vanished_unseen_and_asks_for_passes(plane: ControlPlane) -> None:
    namespace = make_namespace(plane, "relist")
    plane.kubectl.apply(job_manifest("travel", namespace), job_manifest("other", namespace))
    assert look(plane, namespace) > 0

    async def relist(cache: Cache, api: Api) -> Mapping[str, Any]:
        asked: list[Name] = []
        resync = Resync(api, cache, asked.append, watched=WATCHED, namespaces=[namespace], seconds=300)
        await resync.once(first=True)
        assert cache.get(JOB, (namespace, "travel-r1-prepare"))
        await asyncio.to_thread(plane.kubectl, "delete", "finetunejob", "other", namespace=namespace)
        await asyncio.to_thread(plane.kubectl, "delete", "job", "travel-r1-prepare", namespace=namespace)
        await asyncio.to_thread(
            plane.kubectl.wait_until,
            lambda: plane.kubectl.get("job", "travel-r1-prepare", namespace) is None,
            PATIENCE,
            "the Job's end",
        )
        asked.clear()
        await resync.once()
        assert resync.silent == set(), "once may be a change on its way"
        return {
            "jobs": cache.names(FINE_TUNE_JOB),
            "children": cache.get(JOB, (namespace, "travel-r1-prepare")),
            "asked": set(asked),
        }

    async def live() -> Mapping[str, Any]:
        async with living(plane, namespace, Api) as life:
            return await relist(life.cache, life.api)

    assert asyncio.run(live()) == {
        "jobs": [(namespace, "travel")],
        "children": None,
        "asked": {(namespace, "travel"), (namespace, "other")},
    }


def test_words_that_no_watch_told_are_read_before_the_verdict(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Job's end is told, its pod's is not. The operator's own clock is wrong by years, and is not asked."""
    monkeypatch.setattr(last_words, "GRACE_SECONDS", 0.0)
    namespace = make_namespace(plane, "unheard")
    plane.kubectl.apply(job_manifest("travel", namespace))
    assert look(plane, namespace) > 0
    failure = StageFailure(reason=FailureReason.DATASET_INVALID, message="train: line 4 is broken")
    summary = Summary(stage=Stage.PREPARE, ok=False, run=1, failure=failure)

    async def live() -> float:
        async with living(plane, namespace, Api) as life:
            life.api.clock = ServerClock(local=lambda: 0.0)
            await life.read()
            kubelet, job = Kubelet(plane, namespace), (namespace, "travel-r1-prepare")
            selector = f"{GROUP}/job=travel,{GROUP}/stage=Prepare"
            await asyncio.to_thread(kubelet.end, selector, summary.to_message(), ExitCode.USER_INPUT)
            wait = ("wait", "--for=condition=Failed", f"job/{job[1]}", "--timeout=60s")
            await asyncio.to_thread(plane.kubectl, *wait, namespace=namespace)
            life.cache.store(JOB, await life.api.get(JOB, *job))
            await life.pass_over()
            unheard = status_of(plane, namespace, "travel")["run"].get("failure")
            await life.pass_over()
            assert unheard is None
            return abs((life.api.clock.now() - datetime.now(UTC)).total_seconds())

    assert asyncio.run(live()) < PATIENCE
    assert status_of(plane, namespace, "travel")["run"]["failure"]["reason"] == "DatasetInvalid"


def test_an_upgrade_restarts_no_training(plane: ControlPlane, tmp_path: Path) -> None:
    """Another trainer image of the chart reaches the stages that begin from then on; what runs, runs on.
    And back again: a downgrade is an upgrade to the version before."""
    namespace = make_namespace(plane, "upgraded")
    kubelet = Kubelet(plane, namespace)
    images = ["finetune-trainer:0.1.0", "finetune-trainer:0.2.0", "finetune-trainer:0.1.0"]
    train, evaluate = (f"{GROUP}/job=travel,{GROUP}/stage={stage}" for stage in ("Train", "Evaluate"))
    variables = {"FINETUNE_WATCH_NAMESPACES": namespace, "FINETUNE_PROGRESS_INTERVAL_SECONDS": "5"}
    with running_operator(plane, tmp_path, name="old", **variables, FINETUNE_TRAINER_IMAGE=images[0]):
        plane.kubectl.apply(job_manifest("travel", namespace))
        kubelet.end(f"{GROUP}/job=travel,{GROUP}/stage=Prepare", good_summary("Prepare", 1))
        running = kubelet.run(train)["metadata"]["uid"]
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 3, PATIENCE, "the Job", namespace)
    before = children(plane, namespace)
    for number, image in enumerate(images[1:]):
        with running_operator(plane, tmp_path, name=f"new-{number}", FINETUNE_TRAINER_IMAGE=image, **variables) as new:
            new.wait_for_log("resync=done")
            wait_idle(new)
            assert new.writes() == 0
            assert children(plane, namespace) == before
            assert kubelet.pod(train)["metadata"]["uid"] == running
    with running_operator(plane, tmp_path, name="newest", FINETUNE_TRAINER_IMAGE=images[1], **variables):
        kubelet.end(train, good_summary("Train", 1))
        assert kubelet.pod(evaluate)["spec"]["containers"][0]["image"] == images[1]
    assert status_of(plane, namespace, "travel")["run"]["attempt"] == 1
