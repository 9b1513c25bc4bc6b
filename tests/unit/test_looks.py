"""When the data of a job is looked at."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulator import START

from finetune_operator.looks import next_look


def test_many_jobs_that_are_overdue_together_are_looked_at_one_after_the_other() -> None:
    """An operator that was away for a day finds 5,000 of them."""
    now = START + timedelta(days=1)
    begins = [next_look(f"uid-{number}", START, 3600, 0, now)[0] for number in range(5000)]
    minutes = Counter(int((begin - now).total_seconds() // 60) for begin in begins)
    assert max(begins) - now <= timedelta(hours=1)
    assert max(minutes.values()) < 250
    assert min(begins) == now


@settings(max_examples=200, deadline=None)
@given(st.integers(60, 2592000), st.integers(0, 9), st.integers(0, 3_000_000), st.text("abc", min_size=1, max_size=4))
def test_a_look_comes_neither_too_early_nor_too_late(period: int, failures: int, later: int, uid: str) -> None:
    now = START + timedelta(seconds=later)
    grid = min(period, 3600)
    begin, moment = next_look(uid, START, period, failures, now)
    wait = period if not failures else min(grid * 2 ** (failures - 1), max(period, 3600))
    assert begin >= max(now, START + timedelta(seconds=wait - grid / 2))
    assert begin <= max(now, START + timedelta(seconds=wait - grid / 2)) + timedelta(seconds=grid)
    again = next_look(uid, START, period, failures, begin)
    assert again == (begin, moment), "who comes at that moment finds it due, and by the same name"
    after = datetime.fromtimestamp(moment, UTC)
    assert next_look(uid, after, period, failures, begin)[1] > moment, "and it is due once"


def test_a_clock_far_ahead_does_not_put_looks_off_for_ever() -> None:
    begin, _ = next_look("uid", START + timedelta(days=400), 3600, 0, START)
    assert begin - START <= timedelta(hours=1)
