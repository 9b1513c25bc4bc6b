"""Whatever goes wrong between the operator and the API server, all ends where a clean run ends, and writes little more.

Answers are lost, late or refused, requests arrive when nobody waits for them any more, lists expire, watches tell in
another order, twice, not at all, or are cut; clocks differ; the process dies. `make soak` looks for new cases.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.api_server import ApiServer
from tests.lives import BUSY, FAULTS, SLOW, WATCH_FAULTS, Weather, run_lives
from tests.scenarios import SCENARIOS, UNTIMED
from tests.unit.test_control_crashes import clean, outcome

KINDS = st.lists(st.sampled_from([*FAULTS, *WATCH_FAULTS, SLOW, BUSY]), unique=True, max_size=4)
SEEDS = st.integers(0, 2**32)
SKEWS = st.sampled_from([0.0, 0.0, -3600.0, -45.0, 45.0, 3600.0])
DEATHS = st.lists(st.integers(1, 12), max_size=3)
CASES = 40 if settings.default.derandomize else settings.default.max_examples  # `make soak` looks for new ones
WRITES = 3  # times those of a clean run, at most: each may be refused, be repeated, and tell of the refusal


@pytest.mark.parametrize("kind", [*FAULTS, *WATCH_FAULTS, SLOW, BUSY])
def test_each_fault_alone_is_survived(kind: str) -> None:
    for seed in range(3):
        server = run_lives(SCENARIOS["two runs"].world(), weather=Weather([kind], seed))
        assert outcome(server) == outcome(clean("two runs"))


@pytest.mark.parametrize("name", [name for name in UNTIMED if SCENARIOS[name].dated])
def test_what_goes_by_the_time_survives_all_other_weather(name: str) -> None:
    for seed, kinds in enumerate((list(FAULTS), list(WATCH_FAULTS), [SLOW, "late", "late request"])):
        server = run_lives(SCENARIOS[name].world(), deaths=[5, 9], weather=Weather(kinds, seed))
        assert end_of(server) == end_of(clean(name))


def end_of(server: ApiServer) -> dict[str, Any]:
    """As `outcome`. A request that arrives late may make a Service once more, which is removed again."""
    found = outcome(server)
    return {**found, "created": {key: count for key, count in found["created"].items() if "Service/" not in key}}


@pytest.mark.timeout(3600)  # seconds: for a search; the cases of `make test` take some ten
@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([name for name in UNTIMED if not SCENARIOS[name].dated]), KINDS, SEEDS, SKEWS, SKEWS, DEATHS)
@example("served", ["late", "throttled", "throttled for long"], 51764562, 0.0, 0.0, [6])  # a late event beside a list
@example("a gang", ["slow", "conflict", "dropped"], 1781, 0.0, 0.0, [1])  # the Service of its pods was refused at first
@example(
    "a gang", ["internal", "unavailable", "slow"], 0, 0.0, 0.0, []
)  # postponed, with nobody else to wake the queue
def test_any_weather_and_any_deaths_end_in_the_same_place(
    name: str, kinds: list[str], seed: int, skew: float, own_skew: float, deaths: list[int]
) -> None:
    weather = Weather(kinds, seed, skew=skew, own_skew=own_skew)
    server = run_lives(SCENARIOS[name].world(), deaths=deaths, weather=weather)
    assert end_of(server) == end_of(clean(name))
    assert len(server.writes) <= WRITES * len(clean(name).writes)
