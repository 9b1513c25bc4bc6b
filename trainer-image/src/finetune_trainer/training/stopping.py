"""SIGTERM and Ctrl-C as a request that training grants at its next step, after a checkpoint."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from finetune_api.reports import ProgressFile
from finetune_trainer.errors import InterruptedStageError

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _nothing() -> None:
    pass


class StopRequest:
    """Context manager: while it is open, a signal is noted instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt at once, for the impatient; a second SIGTERM changes nothing,
    because Kubernetes follows up with SIGKILL by itself.

    transformers has `enable_jit_checkpoint` for this. It is not used: it waits three seconds on a timer thread,
    may save in the middle of an accumulation, swallows nothing of the end-of-training protocol (progress would
    jump to 100 %), and knows no manifest.
    """

    def __init__(self, then: Callable[[], None] = _nothing, agree: Callable[[bool], bool] = bool) -> None:
        """`then` is called with each signal. `agree`: whether any of several processes was asked to stop, from
        whether this one was; a signal reaches them at different times, and they must stop at the same step."""
        self.requested = False
        self._then = then
        self._agree = agree
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether to stop, the same in all processes; all ask at the same points."""
        return self._agree(self.requested)

    def check(self, saved: str, progress: ProgressFile | None = None) -> None:
        """Raise InterruptedStageError when a stop was asked for. `saved` says what is kept, `progress` in figures. Asks
        as `asked` does."""
        if self.asked():
            error = InterruptedStageError(
                f"asked to stop: {saved}", advice="nothing to do: the stage goes on from there"
            )
            error.progress = progress
            raise error

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            log.info("%s: stopping after the current step", signal.Signals(number).name)
        self.requested = True
        self._then()
