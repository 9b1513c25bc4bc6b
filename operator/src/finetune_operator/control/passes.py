"""What one pass over a job decided and wrote, gathered for its one line in the log and for its trace."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from finetune_api.conditions import ConditionType
from finetune_api.status import FineTuneJobStatus
from finetune_operator.conditions import find

DONE = {"POST": "created", "PUT": "updated", "DELETE": "deleted"}


@dataclass(slots=True)
class Pass:
    """One pass. `writes` are (what was done, to what): ("created", "jobs/travel-r1-train")."""

    namespace: str
    name: str
    outcome: str = ""
    error: str = ""
    uid: str = ""
    run: int | None = None
    stage: str = ""
    reason: str = ""
    failure: str = ""
    writes: list[tuple[str, str]] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    seconds: float = 0.0

    def decided(self, uid: str, status: FineTuneJobStatus) -> None:
        """What the status shall say."""
        ready = find(status.conditions, ConditionType.READY)
        self.uid = uid
        self.run = status.run.number if status.run else None
        self.stage = str(status.stage or "")
        self.reason = ready.reason if ready else ""
        self.failure = str(status.run.failure.reason) if status.run and status.run.failure else ""

    def decision(self) -> dict[str, str]:
        """What is known of the decision and its end."""
        known = {
            "run": "" if self.run is None else str(self.run),
            "stage": self.stage,
            "reason": self.reason,
            "failure": self.failure,
            "outcome": self.outcome,
        }
        return {key: value for key, value in known.items() if value}

    def written(self) -> dict[str, list[str]]:
        """What was written, by what was done to it."""
        found: dict[str, list[str]] = {}
        for done, what in self.writes:
            found.setdefault(done, []).append(what)
        return found

    def __str__(self) -> str:
        parts = {"job": f"{self.namespace}/{self.name}", **self.decision()}
        written = {done: ",".join(what) for done, what in self.written().items()}
        return " ".join(f"{key}={value}" for key, value in {**parts, **written}.items())


_current: ContextVar[Pass | None] = ContextVar("current_pass", default=None)


@contextlib.contextmanager
def following(namespace: str, name: str) -> Iterator[Pass]:
    """A pass, from its beginning to its end. What the tasks that it starts write is its own."""
    current = Pass(namespace, name)
    token = _current.set(current)
    start = time.perf_counter()
    try:
        yield current
    finally:
        current.seconds = time.perf_counter() - start
        _current.reset(token)


def current_pass() -> Pass | None:
    """The pass that this task belongs to, if any."""
    return _current.get()


def note_write(method: str, resource: str, name: str) -> None:
    """The API server has taken a write. Outside of a pass (the Lease) nobody asks."""
    current = _current.get()
    if current is not None and method in DONE:
        current.writes.append((DONE[method], f"{resource}/{name}"))
