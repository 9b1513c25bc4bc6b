"""The time on the API server's clock, by the Date of its answers.

What decisions compare with the present moment are timestamps of the cluster: since when a pod has waited or holds a
GPU, when a run began. By the operator's own clock they would be wrong by as much as that is, and be otherwise after
another replica takes over. Time goes on by the monotonic clock between two answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


class ServerClock:
    """Right to a second and the time of a request. Before the first answer it is this machine's."""

    def __init__(self, local: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._local = local
        self.monotonic = monotonic
        self._ahead: float | None = None  # of the monotonic clock, seconds

    def now(self) -> datetime:
        """The present moment, in UTC."""
        seconds = self._local() if self._ahead is None else self.monotonic() + self._ahead
        return datetime.fromtimestamp(seconds, UTC)

    def heard(self, date: str | None, asked: float) -> None:
        """An answer's Date header, in whole seconds; `asked` is the monotonic time before the request. An unreadable
        one tells nothing."""
        try:
            told = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return
        # It was between `told` and a second later, at some moment between the request and now.
        least, most = told - self.monotonic(), told + 1.0 - asked
        self._ahead = min(max(least if self._ahead is None else self._ahead, least), most)
