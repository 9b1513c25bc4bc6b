"""What the soak says of memory, by readings that are known."""

from __future__ import annotations

from tests.bench.growth import ALLOWED, FEWEST, WARM_UP, Reading, grew, growth

ROUNDS = WARM_UP + FEWEST


def led(process: int, *mib: float) -> list[Reading]:
    return [Reading(process, each, 400 * (number + 1)) for number, each in enumerate(mib)]


def test_a_cache_that_fills_and_stays_is_no_growth() -> None:
    found = growth(led(7, 60.0, 75.0, *[80.0, 80.5] * (FEWEST // 2)))
    assert (found["ratio"], found["kib_per_pass"], grew(found)) == (1.0, 0.0, None)


def test_a_leak_is_told_with_what_it_loses_a_pass() -> None:
    found = growth(led(7, *(80.0 + 2 * number for number in range(ROUNDS))))
    assert found["ratio"] > ALLOWED
    assert found["kib_per_pass"] == round(2 * 1024 / 400, 3)
    assert "memory grew" in str(grew(found))


def test_where_leaders_changed_the_longest_reign_is_told_of() -> None:
    steady = led(8, *[80.0] * ROUNDS)
    found = growth([*led(7, 50.0, 60.0), *steady])
    assert (found["processes"], found["ratio"]) == (2, 1.0)


def test_where_no_leader_stayed_nothing_is_told_and_that_is_said() -> None:
    found = growth([*led(7, *[80.0] * (ROUNDS - 1)), *led(8, *[80.0] * (ROUNDS - 1))])
    assert found["ratio"] is None
    assert "nothing is told" in str(grew(found))
    assert growth([])["ratio"] is None
