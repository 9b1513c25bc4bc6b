"""Everything that ends a command early.

LocalError
 ├── BadInput     exit 2   a file, a flag or a name must change
 ├── Busy         exit 1   another process is at work on the job
 └── Unsupported  exit 2   this machine lacks something that the command needs
"""

from __future__ import annotations

from typing import ClassVar


class LocalError(Exception):
    """Base. `message` names the place, `advice` the remedy."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class BadInput(LocalError):
    """The user's input is wrong."""

    exit_code = 2


class Busy(LocalError):
    """Another process holds the job."""


class Unsupported(LocalError):
    """A part that the command needs is not installed."""

    exit_code = 2
