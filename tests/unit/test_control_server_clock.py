"""The time of decisions is the API server's, whatever the operator's own clock says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from finetune_operator.control.server_clock import ServerClock

NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)


class Machine:
    """Our own wall clock is years behind; the monotonic one goes on as told."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.clock = ServerClock(lambda: 0.0, lambda: self.seconds)

    def answered(self, server: datetime, took: float = 0.0) -> datetime:
        """An answer that the server, at this time, began; what our clock says when it is there."""
        asked = self.seconds
        self.seconds += took
        self.clock.heard(format_datetime(server, usegmt=True), asked)
        return self.clock.now()


def test_before_the_first_answer_it_is_our_own() -> None:
    assert Machine().clock.now() == datetime.fromtimestamp(0, UTC)


def test_after_an_answer_it_is_the_servers_and_goes_on() -> None:
    machine = Machine()
    assert machine.answered(NOON) == NOON
    machine.seconds += 90
    assert machine.clock.now() == NOON + timedelta(seconds=90)


def test_it_does_not_tremble_with_whole_seconds_and_slow_answers() -> None:
    """Each answer leaves room for a second and its own duration; what lies within is no reason to move."""
    machine = Machine()
    machine.answered(NOON)
    for number in range(1, 40):
        machine.seconds += 0.3
        told = (NOON + timedelta(seconds=0.3 * number)).replace(microsecond=0)
        before = machine.clock.now()
        machine.clock.heard(format_datetime(told, usegmt=True), machine.seconds - 0.2)
        assert machine.clock.now() == before


def test_a_server_whose_clock_is_set_is_followed_both_ways() -> None:
    machine = Machine()
    machine.answered(NOON)
    assert machine.answered(NOON + timedelta(hours=1)) == NOON + timedelta(hours=1)
    back = machine.answered(NOON, took=2.0)
    assert NOON <= back <= NOON + timedelta(seconds=3)


@pytest.mark.parametrize("date", [None, "", "yesterday", "Sat, 99 Mar 2026 12:00:00 GMT"])
def test_what_is_no_date_tells_nothing(date: str | None) -> None:
    machine = Machine()
    before = machine.answered(NOON)
    machine.clock.heard(date, machine.seconds)
    assert machine.clock.now() == before
