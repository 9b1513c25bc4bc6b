"""What of task, method, hyperparameters and compute does not go together, and what to write instead."""

from __future__ import annotations

from finetune_api.base import Rule
from finetune_api.optimization import (
    GPU_OPTIMIZERS,
    LOSSES,
    NOT_SMOOTHED,
    OPTIMIZERS,
    Attention,
    Loss,
    Optimizer,
    Precision,
)
from finetune_api.tasks import Task


def _task_loses(task: Task) -> Rule:
    losses = [loss.value for loss in LOSSES[task]]
    return Rule(
        f"self.task != '{task}' || self.hyperparameters.loss in {['auto', *losses]}",
        f"hyperparameters.loss: the task {task} has {', '.join(losses)}; use one of them, or auto",
        lambda spec: spec.task is not task or spec.hyperparameters.loss in (Loss.AUTO, *LOSSES[task]),
    )


def _not_smoothed(task: Task, why: str) -> Rule:
    return Rule(
        f"self.task != '{task}' || self.hyperparameters.labelSmoothing == 'auto'",
        f"hyperparameters.labelSmoothing: not for {task}, because {why}; remove it",
        lambda spec: spec.task is not task or spec.hyperparameters.label_smoothing == "auto",
    )


def _needs_gpu(optimizer: Optimizer) -> Rule:
    instead = OPTIMIZERS[optimizer].on_cpu
    return Rule(
        f"self.hyperparameters.optimizer != '{optimizer}' || self.compute.gpus > 0",
        f"hyperparameters.optimizer: {optimizer} pages the memory of a GPU, and compute.gpus is 0; set it to {instead}",
        lambda spec: spec.hyperparameters.optimizer is not optimizer or spec.compute.gpus > 0,
    )


COMBINATIONS = (
    *(_task_loses(task) for task in LOSSES),
    *(_not_smoothed(task, why) for task, why in NOT_SMOOTHED.items()),
    Rule(
        "self.task != 'Preference' || self.hyperparameters.labelSmoothing == 'auto' || "
        "self.hyperparameters.loss == 'Robust'",
        "hyperparameters.labelSmoothing: for Preference only the loss Robust has it; set loss to Robust, or remove it",
        lambda spec: (
            spec.task is not Task.PREFERENCE
            or spec.hyperparameters.label_smoothing == "auto"
            or spec.hyperparameters.loss is Loss.ROBUST
        ),
    ),
    Rule(
        "self.task != 'Preference' || self.hyperparameters.neftuneAlpha == 'auto'",
        "hyperparameters.neftuneAlpha: Preference compares the model with its base, and noise would be one more "
        "difference; remove it",
        lambda spec: spec.task is not Task.PREFERENCE or spec.hyperparameters.neftune_alpha == "auto",
    ),
    *(_needs_gpu(optimizer) for optimizer in GPU_OPTIMIZERS),
    Rule(
        "self.hyperparameters.attention != 'FlashAttention2' || self.compute.gpus > 0",
        "hyperparameters.attention: FlashAttention2 runs on a GPU, and compute.gpus is 0; set it to auto",
        lambda spec: spec.hyperparameters.attention is not Attention.FLASH_ATTENTION_2 or spec.compute.gpus > 0,
    ),
    Rule(
        "self.hyperparameters.precision != 'BFloat16' || self.compute.gpus > 0",
        "hyperparameters.precision: BFloat16 is for GPUs, and compute.gpus is 0; set it to auto",
        lambda spec: spec.hyperparameters.precision is not Precision.BFLOAT16 or spec.compute.gpus > 0,
    ),
)
"""Rules of the whole specification."""
