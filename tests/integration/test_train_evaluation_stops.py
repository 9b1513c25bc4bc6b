"""A stop during an evaluation of the training, or instead of one: heard at once, and the score is made up for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.trained_runs import make_run, one_thread

from finetune_api.reports import Summary
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.errors import InterruptedStageError
from finetune_trainer.evaluation import scoring
from finetune_trainer.stages import train
from finetune_trainer.training import checkpoints
from finetune_trainer.training.sft import SftTrainer


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageContext, Summary]:
    context = make_run(tmp_path_factory.mktemp("uninterrupted"))
    return context, train.run(context)


def terminate_in_evaluation(patch: pytest.MonkeyPatch, number: int) -> list[int]:
    """SIGTERM to ourselves in the first of many batches of evaluation `number`; the list counts all batches."""
    patch.setattr(scoring, "BATCH_TOKENS", 1)  # one example a batch
    scored: list[int] = []
    stock = scoring._score_batch

    def score_batch(model: Any, rows: Any) -> Any:
        scored.append(len(rows))
        if len(scored) == 6 * (number - 1) + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(model, rows)

    patch.setattr(scoring, "_score_batch", score_batch)
    return scored


def losses(context: StageContext) -> dict[int, float | None]:
    directory = context.checkpoints_dir
    return {step: checkpoints._eval_loss(path, step) for step, path in checkpoints.folders(directory)}


def assert_same_model(one: StageContext, other: StageContext) -> None:
    first, second = (load_file(context.model_dir / "adapter_model.safetensors") for context in (one, other))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(("evaluation", "step"), [(1, 3), (2, 6), (4, 10)])  # 4: the one at the last step
def test_a_stop_is_heard_between_the_batches_of_an_evaluation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[StageContext, Summary],
    evaluation: int,
    step: int,
) -> None:
    context = make_run(tmp_path)
    with monkeypatch.context() as patch:
        scored = terminate_in_evaluation(patch, evaluation)
        with pytest.raises(InterruptedStageError, match=rf"checkpoint saved at step {step} of 10"):
            train.run(context)
    assert len(scored) == 6 * (evaluation - 1) + 1  # no batch after the signal
    assert losses(context)[step] is None
    summary = train.run(context)
    assert summary.resumed_from_step == step
    assert summary.eval_loss == pytest.approx(uninterrupted[1].eval_loss, rel=1e-9)
    assert summary.checkpoint == uninterrupted[1].checkpoint or summary.checkpoint is not None
    assert_same_model(context, uninterrupted[0])


@pytest.mark.parametrize("step", [3, 10])
def test_a_stop_instead_of_an_evaluation_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Evaluations grow worse with every step: the step that was not measured in time must still become the model."""
    monkeypatch.setattr(SftTrainer, "evaluate", _worse_and_worse if step == 3 else _better_and_better)
    context = make_run(tmp_path)
    stock = SftTrainer.training_step

    def training_step(self: SftTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SftTrainer, "training_step", training_step)
        with pytest.raises(InterruptedStageError, match=rf"step {step} of 10"):
            train.run(context)
    assert losses(context)[step] is None
    summary = train.run(context)
    assert summary.checkpoint is not None
    assert summary.checkpoint.step == step
    assert summary.eval_loss == (3.0 if step == 3 else -10.0)
    assert artifacts.verify(context.checkpoints_dir / f"checkpoint-{step}")  # it was not touched to note the score


def test_a_stop_while_the_missed_evaluation_is_made_up_for_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[StageContext, Summary]
) -> None:
    context = make_run(tmp_path)
    for evaluation, message in ((2, "checkpoint saved at step 6"), (1, "checkpoint of step 6 of 10 is there")):
        with monkeypatch.context() as patch:
            terminate_in_evaluation(patch, evaluation)
            with pytest.raises(InterruptedStageError, match=message):
                train.run(context)
    assert train.run(context).resumed_from_step == 6
    assert_same_model(context, uninterrupted[0])


def _worse_and_worse(self: SftTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
    return _evaluated(self, float(self.state.global_step))


def _better_and_better(self: SftTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
    return _evaluated(self, -float(self.state.global_step))


def _evaluated(trainer: SftTrainer, loss: float) -> dict[str, float]:
    metrics = {"eval_loss": loss}
    trainer.log(metrics)
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    return metrics
