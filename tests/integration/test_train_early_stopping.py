"""A training whose held-out loss does not fall ends, once and at the same step, whatever comes between."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.disturbed_runs import assert_same_weights, inject, progress, stop_at
from tests.trained_runs import make_run, one_thread

from finetune_api.reports import Summary
from finetune_trainer.context import StageContext
from finetune_trainer.errors import InterruptedStageError
from finetune_trainer.stages import train
from finetune_trainer.training import checkpoints
from finetune_trainer.training.sft import SftTrainer
from finetune_trainer.training.stopping import StopRequest

# 20 steps, measured after each other one. The loss of the test falls until step 4 and rises from there.
EARLY = {
    "epochs": 4,
    "total_steps": 20,
    "evaluation_steps": 2,
    "checkpoint_steps": 5,
    "early_stopping_patience": 3,
    "early_stopping_improvement": 0.0,
}
STOPPED = 10
NOTE = (
    "stopped early at step 10 of 20: the held-out loss did not fall in 3 evaluation(s); its lowest was 0.04 at step 4"
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _lowest_at_step_4(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: SftTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._stop_evaluating()
        step = self.state.global_step
        metrics = {"eval_loss": 0.04 + 0.01 * abs(step - 4)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    monkeypatch.setattr(SftTrainer, "evaluate", measure)


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[StageContext, Summary]:
    context = make_run(tmp_path / "whole", resolved=EARLY)
    return context, train.run(context)


def test_it_ends_with_a_note_and_the_best_checkpoint(stopped: tuple[StageContext, Summary]) -> None:
    context, summary = stopped
    assert (summary.steps, summary.total_steps) == (STOPPED, 20)
    assert summary.checkpoint is not None
    assert summary.checkpoint.step == 4
    assert_same_weights(context.model_dir, context.checkpoints_dir / "checkpoint-4")
    assert summary.notes[0] == NOTE
    done = progress(context)
    assert (done.percent, done.step, done.total_steps, done.remaining_seconds) == (100, STOPPED, 20, 0)


@pytest.mark.parametrize("step", [2, 7])  # before the best one, and while its patience runs out
def test_a_stop_request_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: tuple[StageContext, Summary], step: int
) -> None:
    context = make_run(tmp_path / "cut", resolved=EARLY)
    with monkeypatch.context() as patch:
        inject(patch, stop_at(step))
        with pytest.raises(InterruptedStageError):
            train.run(context)
    summary = train.run(context)
    assert (summary.steps, summary.resumed_from_step) == (STOPPED, step + 1)
    assert summary.notes[0] == NOTE
    assert_same_weights(context.model_dir, stopped[0].model_dir)


@pytest.mark.parametrize("during", ["evaluation", "verification"])
def test_one_that_had_stopped_does_not_train_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stopped: tuple[StageContext, Summary],
    during: str,
) -> None:
    """Cut in the middle of the evaluation that ends it, or while the model is verified."""
    context = make_run(tmp_path / "cut", resolved=EARLY)
    with monkeypatch.context() as patch:
        _ask_to_stop(patch, during)
        with pytest.raises(InterruptedStageError):
            train.run(context)
    newest = checkpoints.newest(context.checkpoints_dir)
    assert newest is not None
    assert newest.step == STOPPED
    with caplog.at_level(logging.INFO):
        summary = train.run(context)
    assert (summary.steps, summary.resumed_from_step) == (STOPPED, STOPPED)
    assert "step=11" not in caplog.text
    assert summary.notes[0] == NOTE
    assert_same_weights(context.model_dir, stopped[0].model_dir)


def _ask_to_stop(patch: pytest.MonkeyPatch, during: str) -> None:
    stock, seen = StopRequest.check, SftTrainer._stop_evaluating

    def evaluating(self: SftTrainer) -> None:
        self._stop.requested = self.state.global_step == STOPPED
        seen(self)

    def verifying(self: StopRequest, saved: str, *more: Any) -> None:
        self.requested = self.requested or "not yet verified" in saved
        stock(self, saved, *more)

    if during == "evaluation":
        patch.setattr(SftTrainer, "_stop_evaluating", evaluating)
    else:
        patch.setattr(StopRequest, "check", verifying)
