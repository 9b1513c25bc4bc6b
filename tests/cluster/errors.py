"""What can go wrong with the test cluster.

ClusterError
├── Unavailable     this machine cannot have it; the message names the remedy (fixtures skip with it)
├── CommandFailed   a program ended with an error; the message has its output
├── ComponentDied   a program that should run has ended; the message has the end of its log
└── WaitTimeout     something did not happen in time; the message has logs and events
"""

from __future__ import annotations


class ClusterError(RuntimeError):
    """The root of this package's errors."""


class Unavailable(ClusterError):
    """A part that this machine lacks; the message says what, and how to have it."""


class CommandFailed(ClusterError):
    """A program that was needed ended with an error."""


class ComponentDied(ClusterError):
    """A background program ended by itself; waiting for it any longer is of no use."""


class WaitTimeout(ClusterError):
    """A condition that did not come true within its bound."""
