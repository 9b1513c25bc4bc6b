"""What of task, method, hyperparameters and compute does not go together, and what to write instead."""

from __future__ import annotations

from typing import Any

from finetune_api.base import Rule
from finetune_api.base_model import ContinueMode
from finetune_api.budget import HAS_GPUS
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
from finetune_api.tasks import MethodType, Task, other_than


def _task_loses(task: Task) -> Rule:
    losses = [loss.value for loss in LOSSES[task]]
    return Rule(
        f"self.hyperparameters.loss in {['auto', *losses]}",
        f"hyperparameters.loss: the task {task} has {', '.join(losses)}; use one of them, or auto",
        lambda spec: spec.task is not task or spec.hyperparameters.loss in (Loss.AUTO, *LOSSES[task]),
        unless=other_than(task),
    )


def _not_smoothed(task: Task, why: str) -> Rule:
    return Rule(
        "self.hyperparameters.labelSmoothing == 'auto'",
        f"hyperparameters.labelSmoothing: not for {task}, because {why}; remove it",
        lambda spec: spec.task is not task or spec.hyperparameters.label_smoothing == "auto",
        unless=other_than(task),
    )


def _needs_gpu(optimizer: Optimizer) -> Rule:
    instead = OPTIMIZERS[optimizer].on_cpu
    return Rule(
        f"self.hyperparameters.optimizer != '{optimizer}'",
        f"hyperparameters.optimizer: {optimizer} pages the memory of a GPU, and compute.gpus is 0; set it to {instead}",
        lambda spec: spec.hyperparameters.optimizer is not optimizer or spec.compute.gpus > 0,
        unless=HAS_GPUS,
    )


def _fits_adapter(field: str, attribute: str) -> Rule:
    """What an adapter is made of was decided when it was made."""
    return Rule(
        f"!has(self.method.{field})",
        f"method.{field}: baseModel.fineTuneJob.mode Continue goes on with the adapter as it is; remove it, or set "
        "the mode to Stack",
        lambda spec: not _continues(spec) or getattr(spec.method, attribute) is None,
        unless=_BEGINS,
    )


def _continues(spec: Any) -> bool:
    ref = spec.base_model.fine_tune_job
    return ref is not None and ref.mode is ContinueMode.CONTINUE


_BEGINS = "!has(self.baseModel.fineTuneJob) || self.baseModel.fineTuneJob.mode != 'Continue'"
CONTINUABLE = (MethodType.LORA, MethodType.QLORA)
"""Methods whose adapters can be gone on with, by each other too: the matrices are the same."""
ADAPTER_FIELDS = {
    "rank": "rank",
    "alpha": "alpha",
    "targetModules": "target_modules",
    "rsLoRA": "rs_lora",
    "initialization": "initialization",
}
"""What decides the form of an adapter, by its name in the API and in Python."""

COMBINATIONS = (
    *(_task_loses(task) for task in LOSSES),
    *(_not_smoothed(task, why) for task, why in NOT_SMOOTHED.items()),
    Rule(
        "self.hyperparameters.labelSmoothing == 'auto' || self.hyperparameters.loss == 'Robust'",
        "hyperparameters.labelSmoothing: for Preference only the loss Robust has it; set loss to Robust, or remove it",
        lambda spec: (
            spec.task is not Task.PREFERENCE
            or spec.hyperparameters.label_smoothing == "auto"
            or spec.hyperparameters.loss is Loss.ROBUST
        ),
        unless=other_than(Task.PREFERENCE),
    ),
    Rule(
        "self.hyperparameters.neftuneAlpha == 'auto'",
        "hyperparameters.neftuneAlpha: Preference compares the model with its base, and noise would be one more "
        "difference; remove it",
        lambda spec: spec.task is not Task.PREFERENCE or spec.hyperparameters.neftune_alpha == "auto",
        unless=other_than(Task.PREFERENCE),
    ),
    *(_needs_gpu(optimizer) for optimizer in GPU_OPTIMIZERS),
    Rule(
        "self.hyperparameters.attention != 'FlashAttention2'",
        "hyperparameters.attention: FlashAttention2 runs on a GPU, and compute.gpus is 0; set it to auto",
        lambda spec: spec.hyperparameters.attention is not Attention.FLASH_ATTENTION_2 or spec.compute.gpus > 0,
        unless=HAS_GPUS,
    ),
    Rule(
        "self.hyperparameters.precision != 'BFloat16'",
        "hyperparameters.precision: BFloat16 is for GPUs, and compute.gpus is 0; set it to auto",
        lambda spec: spec.hyperparameters.precision is not Precision.BFLOAT16 or spec.compute.gpus > 0,
        unless=HAS_GPUS,
    ),
    Rule(
        f"self.method.type in {[method.value for method in CONTINUABLE]}",
        "method.type: baseModel.fineTuneJob.mode Continue goes on with an adapter of LoRA or QLoRA; set the type to "
        "one of them, or the mode to Stack",
        lambda spec: not _continues(spec) or spec.method.type in CONTINUABLE,
        unless=_BEGINS,
    ),
    *(_fits_adapter(field, attribute) for field, attribute in ADAPTER_FIELDS.items()),
)
"""Rules of the whole specification."""
