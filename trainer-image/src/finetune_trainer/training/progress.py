"""Progress for a laptop, for the next attempt, and for the log: `progress.json`, written atomically.

The control plane does not read this file while training runs; transformers' own KubeflowCallback tells it.
"""

from __future__ import annotations

import logging
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.interruptions import StopCosts
from finetune_api.reports import ProgressFile
from finetune_trainer import artifacts
from finetune_trainer.errors import LossNotFiniteError
from finetune_trainer.explanation import is_full

log = logging.getLogger(__name__)
SECONDS_BETWEEN_WRITES = 1.0
# Checked in every logged line; a NaN gradient ruins the weights one step before the loss shows it.
WATCHED = ("loss", "grad_norm", "eval_loss")


class ProgressCallback(TrainerCallback):  # type: ignore[misc]  # untyped library
    """Keeps `progress.json` fresh, logs one line a logged step, and ends training when a number is not finite."""

    def __init__(self, path: Path, first_step: int, *, writes: bool = True) -> None:
        """`writes`: whether this process is the one that writes the file."""
        self._path = path
        self._writes = writes
        self._values = ProgressFile(
            attempt_first_step=first_step,
            checkpoint_step=first_step or None,
            stop_costs=StopCosts(lost_steps=lost_steps(path, first_step)),
        )
        self._step_started: float | None = None
        self._started = time.monotonic()
        self._written = -math.inf

    @property
    def values(self) -> ProgressFile:
        return self._values

    def checkpoint_saved(self, step: int, seconds: float) -> None:
        """A finished checkpoint, and how long it took."""
        self._values = self._values.model_copy(update={"checkpoint_step": step})
        self._slowest("save_seconds", seconds)
        self._write()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.monotonic()
        self._update(state)
        self._write()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save or control.should_evaluate:
            control.should_log = True  # a NaN must be seen before it is saved
        if self._step_started is not None:
            self._slowest("step_seconds", time.monotonic() - self._step_started)
        self._update(state)
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self._write()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        check_finite(logs, state.global_step)
        names = {"loss": "train_loss", "eval_loss": "eval_loss", "tokens_per_second": "tokens_per_second"}
        self._update(state, **{field: logs[name] for name, field in names.items() if name in logs})
        if any(name in logs for name in names):
            shown = ("loss", "eval_loss", "mean_token_accuracy", "eval_token_accuracy", "learning_rate")
            figures = " ".join(f"{name}={logs[name]:.4g}" for name in shown if name in logs)
            log.info("step=%d of=%d %s", state.global_step, state.max_steps, figures)
            self._write()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._update(state)
        # Also when it stopped early: there is nothing more to come.
        self._values = self._values.model_copy(update={"percent": 100, "remaining_seconds": 0})
        self._write()

    def _update(self, state: TrainerState, **values: float) -> None:
        step, total = state.global_step, max(1, state.max_steps)
        done = step - self._values.attempt_first_step
        remaining = (time.monotonic() - self._started) / done * (total - step) if done > 0 else None
        update = {
            "step": step,
            "total_steps": state.max_steps,
            "percent": min(100, 100 * step // total),
            "epoch": state.epoch,
            "remaining_seconds": None if remaining is None else round(remaining),
            "update_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self._values = self._values.model_copy(update={**update, **values})

    def _slowest(self, name: str, seconds: float) -> None:
        """A stop may come in the middle of the slowest step and then wait for the slowest checkpoint."""
        costs = self._values.stop_costs
        slowest = max(getattr(costs, name) or 0.0, round(seconds, 3))
        self._values = self._values.model_copy(update={"stop_costs": costs.model_copy(update={name: slowest})})

    def _write(self) -> None:
        self._written = time.monotonic()
        if not self._writes:
            return
        try:
            artifacts.write_json(self._path, self._values.model_dump_json(by_alias=True, exclude_none=True))
        except OSError as error:
            if not is_full(error):
                raise
            log.warning("progress is not noted: %s; a checkpoint will need room, too", error)


def lost_steps(path: Path, first_step: int) -> int:
    """Steps that were trained and are trained again, of all attempts until now: the former attempt's sum, and what it
    did after the checkpoint that this one goes on from. It wrote its step at least every second."""
    try:
        before = ProgressFile.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return 0
    return before.stop_costs.lost_steps + max(0, before.step - first_step)


def check_finite(logs: dict[str, Any], step: int) -> None:
    """Raise LossNotFiniteError when a watched number is NaN or infinite."""
    for name in WATCHED:
        value = logs.get(name)
        if isinstance(value, int | float) and not math.isfinite(value):
            raise LossNotFiniteError(
                f"{name} is {value} at step {step}",
                advice="lower hyperparameters.learningRateMultiplier (try a tenth); when it is already low, look for "
                "broken examples in the dataset report, or for a base model that overflows in its precision",
            )
