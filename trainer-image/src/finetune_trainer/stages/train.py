"""Train: fit, choose the best checkpoint, prove that it is a working model."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from transformers import PreTrainedTokenizerBase

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import ModelSummary, Summary
from finetune_api.status import Checkpoint, ResolvedValues
from finetune_trainer import artifacts, verification
from finetune_trainer.context import StageContext
from finetune_trainer.distribution import environment
from finetune_trainer.distribution.arguments import whole_again
from finetune_trainer.distribution.group import Group
from finetune_trainer.distribution.halving import Halved, halve
from finetune_trainer.errors import ArtifactInvalidError, GpuOutOfMemoryError
from finetune_trainer.evaluation.questions import choose
from finetune_trainer.methods.continued import as_before
from finetune_trainer.methods.kind import Form
from finetune_trainer.tasks.kind import Answer, Question
from finetune_trainer.training import checkpoints
from finetune_trainer.training.cutting import cut_to_devices
from finetune_trainer.training.device import Device, choose_device, limit_threads
from finetune_trainer.training.fit import Fit, fit
from finetune_trainer.training.fitted import Fitted, fitted, forget, note
from finetune_trainer.training.inputs import Prepared, load_prepared, load_tokenizer
from finetune_trainer.training.memory import halved, is_out_of_memory
from finetune_trainer.training.output import assemble, trained
from finetune_trainer.training.stopping import StopRequest
from finetune_trainer.training.trainer import free_memory

log = logging.getLogger(__name__)
QUESTIONS = 200  # held-out questions among which those for the new model are chosen


def run(context: StageContext) -> Summary:
    """Train from the newest checkpoint, or from the start; leave `model/` with a manifest.

    Raises UserInputError, GpuOutOfMemoryError, LossNotFiniteError, ArtifactInvalidError, InterruptedStageError.
    """
    where, pods = environment.place(), environment.gang(context.gpus, context.config.processes)
    done = fitted(context.run_dir) if where.size == 1 else None
    if done is not None and pods.node:
        return Summary(stage=Stage.TRAIN, ok=True, steps=done.steps)
    prepared = load_prepared(context)
    limit_threads(prepared.resolved.model_parameters, where.local_size)
    device = choose_device(context.gpus, prepared.resolved.precision, where.local)
    notes = [device.note] if device.note else []
    group = Group(where, device)
    with StopRequest(agree=group.any) as stop:
        if done is None:
            with group:
                done = _fitted(context, prepared, device, stop, group)
                if where.first and pods.nodes > 1:
                    note(context.run_dir, done)
                group.barrier()
            whole_again()
        if not where.first:
            return Summary(stage=Stage.TRAIN, ok=True, steps=done.steps)
        stop.check(f"trained to step {done.steps}, its checkpoint is saved; the model is not yet verified")
        best = checkpoints.best(context.checkpoints_dir)
        if best is None:
            forget(context.run_dir)
            raise ArtifactInvalidError(
                f"{context.checkpoints_dir} has no sound checkpoint", advice="set a new spec.rerunToken"
            )
        log.info("best checkpoint is of step %d, eval_loss=%s", best.step, best.eval_loss)
        model, verify_notes = _finish_model(context, prepared, best, device, stop)
    saved = datetime.fromtimestamp((best.path / artifacts.MANIFEST).stat().st_mtime, UTC)
    return Summary(
        stage=Stage.TRAIN,
        ok=True,
        # On a GPU without bfloat16, or without the GPU that was asked for, it is not the precision that was wanted.
        resolved=done.resolved.model_copy(update={"precision": device.precision}),
        model=model,
        checkpoint=Checkpoint(step=best.step, time=saved.strftime("%Y-%m-%dT%H:%M:%SZ")),
        steps=done.steps,
        total_steps=done.total_steps,
        train_loss=done.train_loss,
        eval_loss=best.eval_loss,
        train_seconds=done.seconds,
        resumed_from_step=done.resumed_from_step or None,
        stop_costs=done.stop_costs,
        notes=[*notes, *done.notes, *verify_notes],
    )


def _fitted(context: StageContext, prepared: Prepared, device: Device, stop: StopRequest, group: Group) -> Fitted:
    """Train to the last step."""
    resolved, cut_notes = cut_to_devices(context, prepared, device, group)
    result, notes = _fit_in_memory(context, prepared, resolved, device, stop, group)
    free_memory()
    return Fitted(
        resolved=resolved,
        steps=result.steps,
        total_steps=result.total_steps,
        resumed_from_step=result.resumed_from_step,
        train_loss=result.train_loss,
        seconds=result.seconds,
        stop_costs=result.stop_costs,
        notes=[*cut_notes, *notes],
    )


def _fit_in_memory(
    context: StageContext,
    prepared: Prepared,
    resolved: ResolvedValues,
    device: Device,
    stop: StopRequest,
    group: Group,
) -> tuple[Fit, list[str]]:
    """Fit; when memory does not suffice, once more with half the micro batch, from the last checkpoint. One of several
    processes ends instead: the others cannot go on without it, and the launcher starts them all again."""
    notes: list[str] = []
    for attempt in itertools.count(1):
        try:
            result = fit(context, prepared, resolved, device, stop, group)
            return result, [*notes, *result.notes]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            smaller = halved(resolved) if attempt == 1 else None
            if smaller is None:
                raise _does_not_fit(resolved, device, error) from error
            note = (
                f"out of memory with {resolved.micro_batch_size} examples in a forward pass: went on with "
                f"{smaller.micro_batch_size} and {smaller.gradient_accumulation} passes a step, the same batch size"
            )
            if group.place.size > 1:
                halve(context.run_dir, Halved(micro_batch_size=smaller.micro_batch_size, note=note))
                raise _does_not_fit(resolved, device, error) from error
            notes.append(note)
        log.warning(notes[-1])
        resolved = smaller
        free_memory()  # outside the except block: the traceback would keep the old tensors alive
    raise AssertionError


def _does_not_fit(resolved: ResolvedValues, device: Device, error: Exception) -> GpuOutOfMemoryError:
    reason = FailureReason.CUDA_OUT_OF_MEMORY if device.kind == "cuda" else FailureReason.OUT_OF_MEMORY
    return GpuOutOfMemoryError(
        f"out of memory on {device.name} with {resolved.micro_batch_size} examples of up to {resolved.max_length} "
        f"tokens in a forward pass: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        advice="lower hyperparameters.maxLength, take a GPU with more memory or a smaller base model; QLoRA "
        "needs less than LoRA, and LoRA far less than Full",
        reason=reason,
    )


def _finish_model(
    context: StageContext, prepared: Prepared, best: checkpoints.SavedCheckpoint, device: Device, stop: StopRequest
) -> tuple[ModelSummary, list[str]]:
    """Assemble, verify and only then finish the model folder."""
    config = context.config
    tokenizer = load_tokenizer(prepared.base_dir)
    made = trained(best.path, config, prepared, device)
    form = assemble(made, context.model_dir, config, tokenizer, prepared, context.before)
    notes = _ask(context, prepared, tokenizer, device, stop, form)
    summary = ModelSummary(
        path=context.model_dir.relative_to(context.artifacts).as_posix(),
        base_path=prepared.base_path,
        kind=form,
        sha256=artifacts.finish(context.model_dir),
    )
    return summary, notes


def _ask(
    context: StageContext,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
    device: Device,
    stop: StopRequest,
    form: Form,
) -> list[str]:
    """Load the assembled model from disk and let it answer; the notes for the user."""
    kind, facts = prepared.kind, prepared.facts
    model = verification.load_tuned(context.model_dir, prepared.base_dir, device, kind, facts, form)
    held_out = prepared.measured_on(QUESTIONS, tokenizer)
    questions = choose(kind.ask(held_out), held_out.context, QUESTIONS)

    def between_batches() -> None:
        stop.check("the last checkpoint is saved; the model is not yet verified")

    def ask(asked: Sequence[Question]) -> list[Answer]:
        return kind.answer(model, tokenizer, asked, facts=facts, between_batches=between_batches)

    def ask_base(asked: Sequence[Question]) -> list[Answer]:
        with as_before(model, context.before):
            return ask(asked)

    verified = verification.verify_answers(ask, ask_base if form == "Adapter" else None, questions.asked)
    log.info("verified: answers that end by themselves: %s", verified.stopped)
    return [*questions.notes, *verified.notes]
