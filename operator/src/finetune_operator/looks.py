"""When the data of a job is looked at.

Each job has a moment of its own within the hour (within the period, where that is shorter), made of its uid: many jobs
that were applied together, or that an operator finds overdue after it was away, are looked at one after the other.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api.dataset_poll import HOUR
from finetune_operator.names import short_hash

WINDOW_SECONDS = 60  # so late a look may begin; later it waits for the job's next moment
SKEW = timedelta(days=1)  # a moment further ahead was written by a clock that was wrong


def next_look(uid: str, last: datetime, period: int, failures: int, now: datetime) -> tuple[datetime, int]:
    """When the first look after the moment `last` begins (now, where that is due), and its own moment in Unix seconds,
    by which it is known. After `failures` in a row: an hour later, then two, four and so on up to the period."""
    grid = min(period, HOUR)
    wait = period if not failures else min(grid * 2 ** min(failures - 1, 20), max(period, HOUR))
    earliest = last + timedelta(seconds=wait - grid / 2)
    begin = now if last > now + SKEW else max(now, earliest)
    since = (int(begin.timestamp()) - int(short_hash(uid), 16)) % grid
    if since > min(WINDOW_SECONDS, grid // 2 - 1):
        begin += timedelta(seconds=grid - since)
        since = 0
    return begin, int(begin.timestamp()) - since
