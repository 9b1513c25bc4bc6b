"""The times of a schedule: where clocks change, and whoever looks from whatever moment."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.occasions import ScheduleError, after, last_until, next_after

BERLIN = "Europe/Berlin"  # forward on 2026-03-29 at 01:00 UTC, back on 2026-10-25 at 01:00 UTC


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(cron: str, zone: str, start: str, count: int) -> list[str]:
    found = itertools.islice(after(cron, zone, moment(start)), count)
    return [time.strftime("%m-%dT%H:%M") for time in found]


@pytest.mark.parametrize(
    ("cron", "zone", "start", "expected"),
    [
        ("0 2 * * SUN", "Etc/UTC", "2026-01-01T00:00", ["01-04T02:00", "01-11T02:00"]),
        ("0 2 * * *", "Asia/Kolkata", "2026-01-01T00:00", ["01-01T20:30", "01-02T20:30"]),
        # 02:30 does not exist on that day: right after the gap, which is 03:00 there
        ("30 2 * * *", BERLIN, "2026-03-28T12:00", ["03-29T01:00", "03-30T00:30"]),
        # two of the gap, and the one after it, are one moment
        ("0,30 2,3 * * *", BERLIN, "2026-03-29T00:30", ["03-29T01:00", "03-29T01:30", "03-30T00:00"]),
        # 02:30 comes twice on that day, and is met once
        ("30 2 * * *", BERLIN, "2026-10-24T12:00", ["10-25T00:30", "10-26T01:30"]),
        # asked between the two
        ("30 2 * * *", BERLIN, "2026-10-25T01:10", ["10-26T01:30"]),
        # each real hour
        ("0 * * * *", BERLIN, "2026-10-24T23:30", ["10-25T00:00", "10-25T01:00", "10-25T02:00"]),
        ("0 * * * *", BERLIN, "2026-03-28T23:30", ["03-29T00:00", "03-29T01:00", "03-29T02:00"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00", ["02-29T00:00"]),
    ],
)
def test_the_times(cron: str, zone: str, start: str, expected: list[str]) -> None:
    assert times(cron, zone, start, len(expected)) == expected


@pytest.mark.parametrize(
    ("cron", "zone", "message"),
    [
        ("0 0 30 2 *", "UTC", "cron: '0 0 30 2 *': Bad day-of-month"),
        ("0 5-1 * * *", "UTC", "ranges from the lower to the higher value"),
        ("0 0 * * *", "Europe", "timeZone: 'Europe' is not known here"),
        ("0 0 * * *", "Europe/Atlantis", "write an IANA name"),
        ("0 0 31 2,4,6 *", "UTC", "cron"),
    ],
)
def test_what_makes_no_sense_names_the_field_and_the_remedy(cron: str, zone: str, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        next_after(cron, zone, moment("2026-01-01T00:00"))
    assert message in str(caught.value)


CRONS = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "30 2 * * *", "0,30 1-3 * * *", "59 23 * * SUN", "0 0 1 * *", "15 */5 * * MON-FRI"]
)
ZONES = st.sampled_from(["Etc/UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
# Around both changes of the clocks of all these zones.
MOMENTS = st.integers(0, 270 * 24 * 60).map(lambda minutes: moment("2026-03-05T00:00") + timedelta(minutes=minutes))


@settings(max_examples=60, deadline=None)
@given(CRONS, ZONES, MOMENTS, st.integers(1, 40 * 24 * 60))
def test_the_last_one_is_the_same_from_wherever_one_looks(cron: str, zone: str, since: datetime, minutes: int) -> None:
    """So a pass that comes late, from another replica or after an outage finds the occasion that others would find."""
    until = since + timedelta(minutes=min(minutes, 3000) if cron.startswith("*") else minutes)
    all_of_them = list(itertools.takewhile(lambda time: time <= until, after(cron, zone, since)))
    assert last_until(cron, zone, since, until) == (all_of_them[-1] if all_of_them else None)
    assert all_of_them == sorted(set(all_of_them))
    for one, other in itertools.pairwise(all_of_them[:50]):
        assert next_after(cron, zone, one) == other


def test_a_year_of_minutes_is_not_gone_through() -> None:
    until = moment("2026-12-31T12:00")
    assert last_until("* * * * *", "Etc/UTC", until - timedelta(days=3650), until) == until
