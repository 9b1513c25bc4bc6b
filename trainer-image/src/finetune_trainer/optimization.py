"""What `auto` means for optimizer, schedule, loss and attention; the rest is in `resolve.py`.

optimizer       AdamW; fused on a GPU, which is transformers' default and does the same in fewer kernels.
schedule        cosine to 0: TRL's recipes for LoRA and DPO; near a linear one in every comparison.
warm-up         3 % of the steps, at least 1 where there are more than 10 (QLoRA, arXiv 2305.14314, appendix B).
weight decay    0, as in transformers and TRL: few epochs on little data, and nothing to pull an adapter to zero for.
clipping        norm 1, transformers' default.
loss            the task's first one. Robust takes a tenth of the pairs for wrong (arXiv 2403.00409, as TRL has it).
checkpointing   of activations on a GPU, where memory is what is short.
attention       for packed rows flash attention where it is installed, or our own; else what transformers takes itself.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from finetune_api.conditions import FailureReason
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.optimization import (
    ATTENTIONS,
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    Attention,
    Loss,
    Optimizer,
    Schedule,
    Switch,
)
from finetune_api.run_config import RunConfig
from finetune_api.status import ResolvedValues
from finetune_api.tasks import Task
from finetune_trainer.errors import UserInputError
from finetune_trainer.methods.table import METHODS
from finetune_trainer.tasks.kind import Facts

PREFERENCE_RATE = 1 / 20
WARMUP_SHARE = 0.03
FEW_STEPS = 10  # a training of so few has no step to spare for a warm-up
DECAY_SHARE = 0.2  # of the steps, in which WarmupStableDecay goes down (arXiv 2405.18392: a fifth is enough)
MIN_RATE_SHARE = 0.1  # of the peak, at which CosineWithMinLr ends
MAX_GRAD_NORM = 1.0
ROBUST_SMOOTHING = 0.1
PACKED_ROWS = "packed_rows"  # training/packed_attention.py, which loads torch


def resolve_optimizer(wanted: Hyperparameters, gpus: int) -> Optimizer:
    """The optimizer that the trainer gets."""
    if wanted.optimizer is not Optimizer.AUTO:
        return wanted.optimizer
    return Optimizer.ADAMW_FUSED if gpus else Optimizer.ADAMW


def resolve_rate(config: RunConfig) -> float:
    """Peak learning rate: the one that is given, or the method's own, as the optimizer and the task want it."""
    wanted = config.hyperparameters
    if wanted.learning_rate is not None:
        return float(wanted.learning_rate)
    rate = METHODS[config.method.type].learning_rate * OPTIMIZERS[resolve_optimizer(wanted, config.gpus)].rate
    return (
        rate * (PREFERENCE_RATE if config.task is Task.PREFERENCE else 1) * multiplier(wanted.learning_rate_multiplier)
    )


def multiplier(value: str | int) -> float:
    """`auto` is 1. Raises UserInputError (SpecInvalid) when it is not above 0."""
    factor = 1.0 if value == "auto" else float(value)
    if factor <= 0:
        raise _invalid(
            f"hyperparameters.learningRateMultiplier {value} must be above 0",
            "set it to auto, or to a number such as 0.5 or 2",
        )
    return factor


def resolve_warmup(wanted: Hyperparameters, steps: int) -> int:
    """Optimizer steps. Raises UserInputError (SpecInvalid) when the peak would never be reached."""
    schedule = resolve_schedule(wanted)
    if schedule is Schedule.CONSTANT:
        return 0
    if wanted.warmup == "auto":
        return max(round(WARMUP_SHARE * steps), 1 if steps > FEW_STEPS else 0)
    text = str(wanted.warmup)
    warmup = round(float(text.rstrip("%")) / 100 * steps) if text.endswith("%") else int(text)
    room = steps - (decay_steps(steps) if schedule is Schedule.WARMUP_STABLE_DECAY else 0)
    if warmup and warmup >= room:
        raise _invalid(
            f"hyperparameters.warmup {text} is {warmup} optimizer steps, and the training has {steps}"
            + (f", of which the last {steps - room} go down" if room < steps else ""),
            f"set it to fewer than {max(1, room)} steps, or to auto",
        )
    return warmup


def decay_steps(steps: int) -> int:
    """Of WarmupStableDecay."""
    return max(1, round(DECAY_SHARE * steps))


def resolve_schedule(wanted: Hyperparameters) -> Schedule:
    return Schedule.COSINE if wanted.schedule is Schedule.AUTO else wanted.schedule


def resolve_loss(config: RunConfig, facts: Facts) -> tuple[Loss, float]:
    """The loss and its label smoothing. Raises UserInputError (SpecInvalid) for what several labels an example do not
    have."""
    wanted = config.hyperparameters
    loss = LOSSES[config.task][0] if wanted.loss is Loss.AUTO else wanted.loss
    auto = ROBUST_SMOOTHING if loss is Loss.ROBUST else 0.0
    smoothing = auto if wanted.label_smoothing == "auto" else float(wanted.label_smoothing)
    if facts.multi_label and (loss is Loss.WEIGHTED_CROSS_ENTROPY or smoothing):
        field = "loss" if loss is Loss.WEIGHTED_CROSS_ENTROPY else "labelSmoothing"
        raise _invalid(
            f"hyperparameters.{field}: the examples of this data have several labels each, which are learned by a yes "
            "or no for every label",
            f"remove hyperparameters.{field}, or give each example one label",
        )
    return loss, smoothing


def flash_attention_installed() -> bool:
    """Whether examples in one row can be kept apart without a mask; the image is the same in Train."""
    return importlib.util.find_spec("flash_attn") is not None


def resolve_attention(
    wanted: Hyperparameters,
    supported: tuple[str, ...],
    precision: str,
    *,
    packing: bool,
    plain: bool,
    installed: bool,
) -> str:
    """transformers' word. `supported` are those that the architecture has, the one that transformers takes by itself
    first; `plain` is whether it takes our own for packed rows, and `installed` whether flash attention is. Raises
    UserInputError (SpecInvalid) when the architecture or the image lacks what is asked for."""
    flash = ATTENTIONS[Attention.FLASH_ATTENTION_2]
    if wanted.attention is Attention.AUTO:
        if packing and precision == "bfloat16" and installed and flash in supported:
            return flash
        return PACKED_ROWS if packing and plain else supported[0]
    chosen = ATTENTIONS[wanted.attention]
    if chosen not in supported:
        names = ", ".join(name for name, word in ATTENTIONS.items() if word in supported)
        text = f"hyperparameters.attention: this model's architecture has no {wanted.attention}; it has {names}"
        raise _invalid(text, "set it to auto")
    if chosen == flash and not installed:
        raise _invalid(
            "hyperparameters.attention FlashAttention2: the trainer image does not have the package flash_attn",
            "set it to auto, or use a trainer image with flash_attn",
        )
    return chosen


def resolve_early_stopping(wanted: Hyperparameters, steps: int, evaluation_steps: int) -> dict[str, Any]:
    """Patience and least improvement, where it is asked for. Raises UserInputError (SpecInvalid) when the training is
    over before it could stop early."""
    early = wanted.early_stopping
    if early is None:
        return {}
    first = evaluation_steps * (early.patience + 1)
    if first >= steps:
        raise _invalid(
            f"hyperparameters.earlyStopping: with an evaluation every {evaluation_steps} steps and a patience of "
            f"{early.patience} it could end the training at step {first} at the earliest, and the training has {steps}",
            "lower evaluationSteps or earlyStopping.patience, or remove earlyStopping",
        )
    return {"early_stopping_patience": early.patience, "early_stopping_improvement": early.least}


def resolve_checkpointing(wanted: Hyperparameters, gpus: int) -> bool:
    """Whether activations are computed again instead of being kept."""
    if wanted.gradient_checkpointing is Switch.AUTO:
        return gpus > 0
    return wanted.gradient_checkpointing is Switch.ENABLED


def resolve_optimization(config: RunConfig, facts: Facts, *, steps: int, evaluation_steps: int) -> dict[str, Any]:
    """The fields of ResolvedValues that say how weights are moved."""
    wanted = config.hyperparameters
    loss, smoothing = resolve_loss(config, facts)
    norm, noise = wanted.max_grad_norm, wanted.neftune_alpha
    return {
        "learning_rate": resolve_rate(config),
        "schedule": resolve_schedule(wanted),
        "warmup_steps": resolve_warmup(wanted, steps),
        "optimizer": resolve_optimizer(wanted, config.gpus),
        "weight_decay": 0.0 if wanted.weight_decay == "auto" else float(wanted.weight_decay),
        "max_grad_norm": MAX_GRAD_NORM if norm == "auto" else float(norm),
        "loss": loss,
        "label_smoothing": smoothing or None,
        "neftune_alpha": None if noise == "auto" else float(noise) or None,
        **resolve_early_stopping(wanted, steps, evaluation_steps),
    }


def optimizer_arguments(resolved: ResolvedValues) -> dict[str, Any]:
    """What transformers is told. A run that an earlier version prepared has AdamW, a cosine and norm 1."""
    optimizer = OPTIMIZERS[resolved.optimizer or Optimizer.ADAMW]
    schedule = resolved.schedule or Schedule.COSINE
    return {
        "learning_rate": resolved.learning_rate,
        "lr_scheduler_type": SCHEDULES[schedule],
        "lr_scheduler_kwargs": _schedule_arguments(schedule, resolved.total_steps),
        "warmup_steps": resolved.warmup_steps,
        "optim": optimizer.library_name,
        "adam_beta2": optimizer.beta2,
        "weight_decay": resolved.weight_decay or 0.0,
        "max_grad_norm": MAX_GRAD_NORM if resolved.max_grad_norm is None else resolved.max_grad_norm,
        "neftune_noise_alpha": resolved.neftune_alpha,
    }


def _schedule_arguments(schedule: Schedule, steps: int) -> dict[str, Any]:
    if schedule is Schedule.WARMUP_STABLE_DECAY:
        return {"num_decay_steps": decay_steps(steps)}
    return {"min_lr_rate": MIN_RATE_SHARE} if schedule is Schedule.COSINE_WITH_MIN_LR else {}


def _invalid(message: str, advice: str) -> UserInputError:
    return UserInputError(message, advice=advice, reason=FailureReason.SPEC_INVALID)
