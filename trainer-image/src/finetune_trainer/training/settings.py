"""What transformers is told: a pure translation of the resolved values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.status import ResolvedValues
from finetune_trainer.optimization import optimizer_arguments
from finetune_trainer.training.device import Device

# Each logged step waits for the device; up to this many steps a curve with every step is worth it.
LOG_EVERY_STEP_UP_TO = 1000


def training_arguments(
    resolved: ResolvedValues, device: Device, checkpoints: Path, seed: int, distribution: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of transformers.TrainingArguments that every task has. A task adds its own. `distribution`: those of
    `distribution_arguments`, the split into forward passes among them."""
    return {
        "output_dir": str(checkpoints),
        "num_train_epochs": resolved.epochs,
        **optimizer_arguments(resolved),
        "seed": seed,
        "data_seed": seed,
        "bf16": device.precision == "bfloat16",
        "eval_strategy": "steps",
        "eval_steps": resolved.evaluation_steps,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "load_best_model_at_end": False,  # chosen from the verified checkpoints instead: see checkpoints.best
        "save_strategy": "steps",
        "save_steps": resolved.checkpoint_steps,
        "logging_steps": 1 if resolved.total_steps <= LOG_EVERY_STEP_UP_TO else 10,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a NaN must be seen, not replaced by the average
        "disable_tqdm": True,
        "report_to": [],  # transformers itself adds its progress reporter when the pod's environment names a receiver
        "dataloader_pin_memory": device.kind == "cuda",
        "remove_unused_columns": True,
        **distribution,
    }
