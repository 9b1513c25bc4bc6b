"""The times of a cron schedule. https://github.com/cuu508/cronsim does what Debian's cron does when clocks change."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

# A set hour that the clocks repeat belongs to its first pass: who begins in the second one must look back that far.
REPEATED = timedelta(hours=3)
# How far back the last occasion is looked for, so that one each minute does not cost a pass over a whole year.
WINDOWS = (timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366))


class ScheduleError(ValueError):
    """The schedule makes no sense; the text names the field and says what to write."""


def after(cron: str, zone: str, moment: datetime) -> Iterator[datetime]:
    """The occasions after the moment, in UTC, each once. Ends where 50 years have none. Raises ScheduleError."""
    times = _times(cron, _zone(zone), moment - REPEATED)
    last = moment
    for time in times:
        utc = time.astimezone(UTC)
        if utc > last:
            last = utc
            yield utc


def next_after(cron: str, zone: str, moment: datetime) -> datetime:
    """The first occasion after the moment. Raises ScheduleError, also when there is none."""
    found = next(after(cron, zone, moment), None)
    if found is None:
        text = f"cron: {cron!r} never comes: no such date in the next 50 years; write another day or month"
        raise ScheduleError(text)
    return found


def last_until(cron: str, zone: str, since: datetime, until: datetime) -> datetime | None:
    """The last occasion after `since` that is not later than `until`, or None. Raises ScheduleError."""
    starts = (*(max(since, until - window) for window in WINDOWS), since)
    found = (_last(cron, zone, start, until) for start in dict.fromkeys(starts))
    return next((time for time in found if time is not None), None)


def _last(cron: str, zone: str, since: datetime, until: datetime) -> datetime | None:
    times = itertools.takewhile(lambda time: time <= until, after(cron, zone, since))
    return next(iter(collections.deque(times, maxlen=1)), None)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, malformed, or a folder of zones such as Europe
        text = f"timeZone: {name!r} is not known here; write an IANA name, for example Europe/Berlin"
        raise ScheduleError(text) from None


def _times(cron: str, zone: ZoneInfo, moment: datetime) -> Iterator[datetime]:
    # As UTC itself, not as a zone of that name: only that one is free of the search for changing clocks.
    start = moment.astimezone(UTC if zone.key in ("UTC", "Etc/UTC") else zone)
    try:
        return CronSim(cron, start)
    except CronSimError as error:
        text = f"cron: {cron!r}: {error}; write for example 0 2 * * SUN, and ranges from the lower to the higher value"
        raise ScheduleError(text) from None
