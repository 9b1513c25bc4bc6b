"""The operator is killed after each of its writes, whatever the job is doing: the end is that of a life without deaths.

Before a server that refuses what a real one refuses, in virtual time. `tests/integration/test_operator_restart.py` has
the same on a real API server, for a sample.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.api_server import ApiServer
from tests.lives import BUSY, Weather, World, run_lives
from tests.simulator import Answer, Manifest, good_summary, make_job, succeed

from finetune_api.conditions import ExitCode, FailureReason, Stage
from finetune_api.reports import StageFailure, Summary

TIMES = {"startTime", "completionTime", "lastTransitionTime", "updateTime", "since", "time"}


def holds(server: ApiServer, condition: str) -> bool:
    return any(each.type == condition and each.status == "True" for each in server.job.status.conditions)


def ready(server: ApiServer) -> bool:
    return holds(server, "Ready")


def trains(server: ApiServer) -> bool:
    return any("train" in pod["metadata"]["name"] and pod["status"]["phase"] == "Running" for pod in server.pods)


def paused(server: ApiServer) -> bool:
    return holds(server, "Suspended")


def worse(pod: Manifest) -> tuple[int, str]:
    labels = pod["metadata"]["labels"]
    stage, run = labels["finetune-operator.io/stage"], int(labels["finetune-operator.io/run"])
    return 0, good_summary(stage, run, tuned=3.0)


def refused(pod: Manifest) -> tuple[int, str]:
    failure = StageFailure(reason=FailureReason.DATASET_INVALID, message="train: line 4 is broken")
    return ExitCode.USER_INPUT, Summary(stage=Stage.PREPARE, ok=False, run=1, failure=failure).to_message()


def interrupted_once() -> Answer:
    """The first pod that trains saves a checkpoint and goes."""
    gone: list[str] = []

    def answer(pod: Manifest) -> tuple[int, str]:
        if gone or pod["metadata"]["labels"]["finetune-operator.io/stage"] != "Train":
            return succeed(pod)
        gone.append(pod["metadata"]["name"])
        return ExitCode.INTERRUPTED, Summary(stage=Stage.TRAIN, ok=False, run=1).to_message()

    return answer


@dataclass(frozen=True)
class Scenario:
    """A job, how its pods end, and what the user does when."""

    spec: dict[str, Any] = field(default_factory=dict)
    answer: Callable[[], Answer] = lambda: succeed
    script: tuple[tuple[Callable[[ApiServer], bool], dict[str, Any]], ...] = ()

    def world(self) -> World:
        script = [(when, lambda server, spec=spec: server.change(**spec)) for when, spec in self.script]
        return World(ApiServer(make_job(**self.spec), self.answer()), script)  # type: ignore[arg-type]


SCENARIOS = {
    "served": Scenario(),
    "gate failed": Scenario(answer=lambda: worse),
    "data refused": Scenario(answer=lambda: refused),
    "interrupted": Scenario(answer=interrupted_once),
    "two runs": Scenario(script=((ready, {"rerunToken": "again"}),)),
    "another run in the middle": Scenario(script=((trains, {"rerunToken": "again"}),)),
    "suspended and resumed": Scenario(script=((trains, {"suspend": True}), (paused, {"suspend": False}))),
    "rolled back": Scenario(
        script=((ready, {"rerunToken": "again"}), (lambda s: ready(s) and second(s), {"serving": {"run": 1}}))
    ),
    "a gang": Scenario(spec={"compute": {"gpus": 0, "nodes": 2}}),
    "judged and exported": Scenario(
        spec={
            "evaluation": {"judge": {"url": "https://judge.example.com/v1", "model": "j"}},
            "output": {"claimName": "models", "exports": [{"name": "whole", "format": "Safetensors"}]},
        }
    ),
}


def second(server: ApiServer) -> bool:
    endpoint = server.job.status.endpoint
    return endpoint is not None and endpoint.run == 2


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in TIMES}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def outcome(server: ApiServer) -> dict[str, Any]:
    """What a life leaves: the status, the children, how often each was made, how many pods each Job had."""
    return {
        "status": timeless(server.job.status.to_wire()),
        "children": sorted(server.objects),
        "created": Counter(server.created),
        "pods": Counter(server.started),
        "orphans": server.orphans(),
    }


def told(server: ApiServer) -> Counter[tuple[str, str]]:
    return Counter((event["reason"], event["note"]) for event in server.told.values())


CLEAN: dict[str, ApiServer] = {}


def clean(name: str) -> ApiServer:
    """The scenario without a fault; once for all tests."""
    if name not in CLEAN:
        CLEAN[name] = run_lives(SCENARIOS[name].world())
    return CLEAN[name]


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_after_any_write_it_ends_in_the_same_place(name: str) -> None:
    expected, events = outcome(clean(name)), told(clean(name))
    for write in range(1, len(clean(name).writes) + 1):
        server = run_lives(SCENARIOS[name].world(), deaths=[write])
        assert outcome(server) == expected, f"killed after write {write}: {server.writes[:write][-1]}"
        assert told(server) <= events, f"killed after write {write}: told twice"


# What a user changes in the middle of a training finds it through when nobody was there to stop it.
UNTIMED = [name for name, each in SCENARIOS.items() if trains not in [when for when, _ in each.script]]


@pytest.mark.parametrize("name", UNTIMED)
def test_killed_and_away_until_nothing_moves_it_ends_in_the_same_place(name: str) -> None:
    expected = outcome(clean(name))
    for write in range(1, len(clean(name).writes) + 1, 3):
        server = run_lives(SCENARIOS[name].world(), deaths=[write], away=60.0)
        assert outcome(server) == expected, f"killed after write {write}: {server.writes[:write][-1]}"


@pytest.mark.parametrize("name", ["served", "a gang", "another run in the middle"])
def test_killed_while_others_wait_it_ends_in_the_same_place(name: str) -> None:
    """The status of what has been made is written at the job's next turn then."""
    expected = outcome(clean(name))
    for write in range(len(clean(name).writes) + 1):
        server = run_lives(SCENARIOS[name].world(), deaths=[write] if write else [], weather=Weather([BUSY]))
        assert outcome(server) == expected, f"killed after write {write}"
    assert server.writes.index("PUT finetunejobs/travel") > server.writes.index("POST jobs/travel-r1-prepare")


@pytest.mark.parametrize("every", [1, 2])
def test_killed_after_every_few_writes_it_gets_there_all_the_same(every: int) -> None:
    expected = outcome(clean("two runs"))
    server = run_lives(SCENARIOS["two runs"].world(), deaths=[every] * 60)
    assert outcome(server) == expected


def test_one_life_writes_no_more_than_its_budget() -> None:
    kinds = Counter(json.dumps(write.split("/")[0]) for write in clean("served").writes)
    assert kinds == {'"POST configmaps"': 1, '"POST jobs"': 3, '"POST deployments"': 1, '"POST services"': 1} | {
        '"PUT finetunejobs"': 5,
        '"POST events"': 7,
    }
