"""The operator is killed after each of its writes, whatever the job is doing: the end is that of a life without deaths.

Before a server that refuses what a real one refuses, in virtual time. `tests/integration/test_operator_restart.py` has
the same on a real API server, for a sample.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from tests.api_server import ApiServer
from tests.lives import BUSY, Weather, run_lives
from tests.scenarios import SCENARIOS, UNTIMED

TIMES = {"startTime", "completionTime", "lastTransitionTime", "updateTime", "since", "time", "gpuSeconds", "gpuHours"}


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


# "pinned and unpinned" begins with all that "two runs" is.
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "two runs"])
def test_killed_after_any_write_it_ends_in_the_same_place(name: str) -> None:
    expected, events = outcome(clean(name)), told(clean(name))
    for write in range(1, len(clean(name).writes) + 1):
        server = run_lives(SCENARIOS[name].world(), deaths=[write])
        assert outcome(server) == expected, f"killed after write {write}: {server.writes[:write][-1]}"
        assert told(server) <= events, f"killed after write {write}: told twice"


@pytest.mark.parametrize("name", [name for name in UNTIMED if name != "two runs"])
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
