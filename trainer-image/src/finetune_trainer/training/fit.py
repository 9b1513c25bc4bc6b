"""One attempt at training: from the newest sound checkpoint, or from the start, to the last step."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, set_seed
from transformers.utils import is_flash_attn_2_available

from finetune_api.conditions import FailureReason
from finetune_api.interruptions import StopCosts
from finetune_api.optimization import ATTENTIONS, Attention
from finetune_api.status import ResolvedValues
from finetune_api.tasks import TASKS
from finetune_trainer.context import StageContext
from finetune_trainer.distribution.arguments import distribution_arguments, dividing
from finetune_trainer.distribution.batches import Batches, Split
from finetune_trainer.distribution.group import Group, alone
from finetune_trainer.distribution.sharding import Choice, elements
from finetune_trainer.errors import UserInputError
from finetune_trainer.methods.continued import begin_with, of_same_form
from finetune_trainer.methods.low_rank import PEFT_HEADS
from finetune_trainer.methods.table import METHODS
from finetune_trainer.optimization import MAX_GRAD_NORM
from finetune_trainer.tasks.kind import HeldOut, Measured, TrainerParts
from finetune_trainer.training import checkpoints, packed_attention
from finetune_trainer.training.device import Device
from finetune_trainer.training.early_stopping import Patience
from finetune_trainer.training.history import keep_history
from finetune_trainer.training.inputs import Prepared, load_model, load_tokenizer, skeleton
from finetune_trainer.training.progress import ProgressCallback
from finetune_trainer.training.settings import training_arguments
from finetune_trainer.training.stopping import StopRequest
from finetune_trainer.training.trainer import Checkpointing

log = logging.getLogger(__name__)
FLASH = ATTENTIONS[Attention.FLASH_ATTENTION_2]

# Held-out examples by which the best checkpoint is chosen, at most. Not evaluation.maxExamples: that may change without
# another run, so the run's model must not depend on it.
SELECTION_EXAMPLES = 500


@dataclass(frozen=True, slots=True)
class Fit:
    """What an attempt did. Losses are the last ones logged, nats a token; `seconds` is this attempt's time. `notes`
    are for the user."""

    steps: int
    total_steps: int
    resumed_from_step: int
    train_loss: float | None
    seconds: float
    stop_costs: StopCosts
    notes: tuple[str, ...] = ()


def fit(
    context: StageContext,
    prepared: Prepared,
    resolved: ResolvedValues,
    device: Device,
    stop: StopRequest,
    group: Group | None = None,
) -> Fit:
    """Train to the last step, leaving verified checkpoints. Deterministic on the CPU: a resumed run ends with the
    weights of an uninterrupted one. `group`: the processes that do it together; None: this one alone.

    Raises LossNotFiniteError, InterruptedStageError (after a checkpoint), and whatever PyTorch raises when memory
    does not suffice.
    """
    group = group or alone()
    make_reproducible(context.config.hyperparameters.seed, device)
    tokenizer = load_tokenizer(prepared.base_dir)
    resumed = group.of_first(_newest(context, resolved) if group.place.first else None)
    trainer = _trainer(context, prepared, resolved, device, stop, tokenizer, resumed, group)
    _announce(context, trainer, resolved, device, resumed.step if resumed else 0)
    stop.check(f"nothing new to save, step {resumed.step if resumed else 0}")
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=str(resumed.path) if resumed else None)
    state = trainer.state
    if group.place.first:
        keep_history(context.training_report_path, state.log_history, device)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    patience = Patience.of(resolved)
    return Fit(
        steps=state.global_step,
        total_steps=state.max_steps,
        resumed_from_step=resumed.step if resumed else 0,
        train_loss=losses[-1] if losses else None,
        seconds=round(time.monotonic() - started, 1),
        stop_costs=trainer.stop_costs,
        notes=(patience.told(state.log_history, state.max_steps),) if patience and _ended_early(state) else (),
    )


def _ended_early(state: TrainerState) -> bool:
    return bool(state.global_step < state.max_steps)


def _newest(context: StageContext, resolved: ResolvedValues) -> checkpoints.SavedCheckpoint | None:
    """The checkpoint to go on from. Those that this number of processes, or this strategy, cannot go on from are
    removed: beside the new ones they would be taken for later ones."""
    layout = checkpoints.layout(resolved)
    found = checkpoints.newest(context.checkpoints_dir)
    if found is None or checkpoints.layout_of(found.path) == layout:
        return found
    log.warning(
        "the checkpoints were made by %s, and %s cannot go on from them: the training begins anew",
        checkpoints.layout_of(found.path),
        layout,
    )
    for _, path in checkpoints.folders(context.checkpoints_dir):
        checkpoints.remove(path)
    return None


def make_reproducible(seed: int, device: Device) -> None:
    """Seed every generator. On the CPU deterministic algorithms are used; on a GPU they would cost too much.

    An architecture with an operation that has none is trained all the same, with PyTorch's warning in the log.
    """
    set_seed(seed)
    torch.use_deterministic_algorithms(device.kind == "cpu", warn_only=True)
    # A debugging aid that comes with it and would write every buffer twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its class


def build_model(context: StageContext, prepared: Prepared, resolved: ResolvedValues, device: Device) -> PreTrainedModel:
    """The base model as the method trains it. Raises UserInputError (ModelInvalid) when it lacks weights that the task
    does not bring anew."""
    spec, kind, facts = context.config.method, prepared.kind, prepared.facts
    if context.before is not None:
        if resolved.strategy.shards_weights:  # the parts of an adapter that is already there would have to be dealt out
            raise UserInputError(
                f"baseModel.fineTuneJob: mode Continue is not for {resolved.strategy}, which divides the weights",
                advice="set baseModel.fineTuneJob.mode to Stack, or compute.distribution.strategy to DDP",
                reason=FailureReason.SPEC_INVALID,
            )
        spec = of_same_form(spec, context.before)
    method = METHODS[spec.type]

    def bare() -> PreTrainedModel:
        return skeleton(prepared.base_dir, kind, facts)

    options = method.load_options(spec, device, bare)
    base = load_model(
        prepared.base_dir,
        device,
        kind,
        facts,
        attention=attention(resolved, device, bare),
        options=options,
        stays=resolved.strategy.shards_weights,
    )
    if base.fresh and kind.peft_type not in PEFT_HEADS:
        raise UserInputError(
            f"the base model has no weights for {', '.join(base.fresh)}: it is not whole, and would write at random",
            advice="use a model that was trained to generate text, not one for embeddings or a part of one",
            reason=FailureReason.MODEL_INVALID,
        )
    model: PreTrainedModel = method.wrap(base.model, spec, resolved, peft_type=kind.peft_type, fresh=base.fresh)
    if context.before is not None:
        begin_with(model, context.before)
    return model


def attention(
    resolved: ResolvedValues, device: Device, skeleton: Callable[[], PreTrainedModel] | None = None
) -> str | None:
    """The implementation that was resolved. For a run that an earlier version prepared, and for flash attention on a
    device that turned out not to have it, packed rows are computed by our own `packed_attention` where the architecture
    lets it. None: what transformers takes by itself. `skeleton` makes the model on the meta device."""
    if resolved.attention and (resolved.attention != FLASH or device.precision == "bfloat16"):
        if resolved.attention == packed_attention.NAME:
            packed_attention.register()
        return resolved.attention
    if not resolved.packing:
        return None
    if device.precision == "bfloat16" and is_flash_attn_2_available():
        return FLASH
    if skeleton and packed_attention.keeps_apart(skeleton()):
        packed_attention.register()
        return packed_attention.NAME
    return None


def _trainer(
    context: StageContext,
    prepared: Prepared,
    resolved: ResolvedValues,
    device: Device,
    stop: StopRequest,
    tokenizer: PreTrainedTokenizerBase,
    resumed: checkpoints.SavedCheckpoint | None,
    group: Group | None = None,
) -> Checkpointing:
    group = group or alone()
    # transformers renames its own arguments, which TRL still uses: nothing that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")
    rows = prepared.rows("train")
    # Only these are taken into memory; the training rows stay on disk, memory-mapped.
    held_out = prepared.measured_on(SELECTION_EXAMPLES, tokenizer)
    seed = context.config.hyperparameters.seed
    cut = Split(resolved.batch_size, group.place.size, resolved.micro_batch_size)
    recompute = device.kind == "cuda" if resolved.gradient_checkpointing is None else resolved.gradient_checkpointing
    decoder = TASKS[context.config.task].decoder
    distribution = distribution_arguments(
        Choice(resolved.strategy, resolved.offload),
        cut,
        device,
        clip=MAX_GRAD_NORM if resolved.max_grad_norm is None else resolved.max_grad_norm,
        decoder=decoder,
        recompute=recompute,
    )
    with dividing(distribution):
        model = build_model(context, prepared, resolved, device)
    reference = _measure_base(prepared, model, held_out, device, stop) if prepared.kind.needs_reference else None

    def measure(model: PreTrainedModel, between_batches: Callable[[], None]) -> Measured:
        return prepared.kind.measure(model, held_out, reference=reference, between_batches=between_batches)

    trainer: Checkpointing = prepared.kind.trainer(
        TrainerParts(
            model=model,
            tokenizer=tokenizer,
            resolved=resolved,
            arguments=training_arguments(resolved, device, context.checkpoints_dir, seed, distribution),
            train=rows,
            validation=prepared.rows("validation").select(prepared.held_out(1)),
            facts=prepared.facts,
            base_dir=prepared.base_dir,
            extra={
                "measure": measure,
                "batches": Batches(len(rows), cut, group.place.rank, seed),
                **_surroundings(context, resolved, stop, resumed, group),
            },
        )
    )
    if len(trainer.train_dataset) != len(rows):
        raise AssertionError(f"the trainer kept {len(trainer.train_dataset)} of {len(rows)} prepared examples")
    return trainer


def _surroundings(
    context: StageContext,
    resolved: ResolvedValues,
    stop: StopRequest,
    resumed: checkpoints.SavedCheckpoint | None,
    group: Group,
) -> dict[str, Any]:
    """What stops and watches a training, and what it goes on from: arguments of our mixin."""
    first_step = resumed.step if resumed else 0
    return {
        "progress": ProgressCallback(context.progress_path, first_step, writes=group.place.first),
        "stop": stop,
        "resumed": resumed,
        "patience": Patience.of(resolved),
        "group": group,
        "layout": checkpoints.layout(resolved),
    }


def _measure_base(
    prepared: Prepared, model: PreTrainedModel, held_out: HeldOut, device: Device, stop: StopRequest
) -> Measured:
    """What the trained model is compared with, in the arithmetic of its training. A model that was just built is the
    base still, whatever checkpoint the training goes on from."""
    with torch.autocast(device.kind, torch.bfloat16, enabled=device.precision == "bfloat16"):
        return prepared.kind.measure(
            model.eval(),
            held_out,
            between_batches=lambda: stop.check("nothing new to save: the base was being measured"),
        )


def _announce(
    context: StageContext, trainer: Checkpointing, resolved: ResolvedValues, device: Device, step: int
) -> None:
    """The first line of the log says what will be done."""
    trainable = sum(elements(p) for p in trainer.model.parameters() if p.requires_grad)
    whole = sum(map(elements, trainer.model.parameters()))
    total = resolved.epochs * math.ceil(len(trainer.train_dataset) / resolved.batch_size)
    figures: dict[str, Any] = {
        "steps": total,
        "epochs": resolved.epochs,
        "examples": len(trainer.train_dataset),
        "batch_size": resolved.batch_size,
        "micro_batch_size": resolved.micro_batch_size,
        "passes": resolved.gradient_accumulation,
        "processes": resolved.processes,
        "strategy": resolved.strategy,
        "offload": resolved.offload,
        "method": context.config.method.type,
        "trainable_parameters": trainable,
        "parameters": whole,
        "device": device.kind,
        "precision": device.precision,
        "threads": torch.get_num_threads(),
        "resumed_from_step": step,
    }
    if step:
        log.info("resuming from checkpoint step %d of %d", step, total)
    log.info("training %s", " ".join(f"{name}={value}" for name, value in figures.items()))
