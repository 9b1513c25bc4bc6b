"""Trainings that are disturbed at a step, and what they leave beside those that are not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.reports import ProgressFile
from finetune_trainer.context import StageContext
from finetune_trainer.training.sft import SftTrainer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs by {(tensor - second[name]).abs().max():.3g}"


def progress(context: StageContext) -> ProgressFile:
    return ProgressFile.model_validate_json(context.progress_path.read_bytes())


def stop_at(step: int) -> Callable[[SftTrainer], None]:
    """A fault for the trainer's step: SIGTERM to ourselves in the middle of step `step` + 1."""

    def act(trainer: SftTrainer) -> None:
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return act


def inject(monkeypatch: pytest.MonkeyPatch, act: Callable[[SftTrainer], None]) -> None:
    """Let `act` happen at the beginning of every forward pass of training."""
    stock = SftTrainer.training_step

    def training_step(self: SftTrainer, *args: Any, **kwargs: Any) -> Any:
        act(self)
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(SftTrainer, "training_step", training_step)
