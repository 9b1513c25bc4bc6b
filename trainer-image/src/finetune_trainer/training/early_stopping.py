"""Ending a training whose held-out loss does not fall any more.

transformers' EarlyStoppingCallback counts in memory, wants the best model loaded at the end, and counts on after a
resume from another checkpoint. Here the count is read off the history of losses, which is part of every checkpoint:
whatever a training goes on from, it ends at the step at which it would have ended without the interruption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.status import ResolvedValues


@dataclass(frozen=True, slots=True)
class Patience:
    """End after so many evaluations none of which is lower than the lowest before by `least`, a share of it."""

    evaluations: int
    least: float

    @classmethod
    def of(cls, resolved: ResolvedValues) -> Patience | None:
        """What the run has, if it has one."""
        if resolved.early_stopping_patience is None:
            return None
        return cls(resolved.early_stopping_patience, resolved.early_stopping_improvement or 0.0)

    def exhausted(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """`history` is transformers' log_history."""
        lowest, waited = math.inf, 0
        for loss in losses(history).values():
            improved = loss < lowest - self.least * abs(lowest) if math.isfinite(lowest) else True
            lowest, waited = (loss, 0) if improved else (lowest, waited + 1)
        return waited >= self.evaluations

    def told(self, history: Sequence[Mapping[str, Any]], total: int) -> str:
        """Why the training ended, for the user."""
        measured = losses(history)
        step, best = max(measured), min(measured, key=lambda at: measured[at])
        by = f" by {self.least:.3g} of itself" if self.least else ""
        return (
            f"stopped early at step {step} of {total}: the held-out loss did not fall{by} in {self.evaluations} "
            f"evaluation(s); its lowest was {measured[best]:.4g} at step {best}"
        )


def losses(history: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Held-out loss by step, in the order of the steps. A step that was measured again counts once."""
    found = {int(entry["step"]): float(entry["eval_loss"]) for entry in history if "eval_loss" in entry}
    return dict(sorted(found.items()))


class EarlyStoppingCallback(TrainerCallback):  # type: ignore[misc]  # untyped library
    """Ends the training, with a checkpoint of where it ended, when the patience is exhausted; also one that is resumed
    from there."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_training_stop = self._patience.exhausted(state.log_history)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._patience.exhausted(state.log_history):
            control.should_training_stop = True
            control.should_save = True  # an attempt that is cut short after this goes on to the end, not to train
