"""An event loop whose clock jumps to the next timer as soon as nothing else is to be done: hours pass in a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sleeps and timers in order and by their times, none of them waited for. Nothing real may be awaited in it."""

    _virtual = 0.0
    _ready: Any
    _scheduled: Any

    def time(self) -> float:
        return self._virtual

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._virtual = max(self._virtual, self._scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


def run_virtually(main: Coroutine[Any, Any, Result]) -> Result:
    """What the coroutine returns, in virtual time that begins at 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
