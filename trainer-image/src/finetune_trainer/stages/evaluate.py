"""Evaluate: base, few-shot and tuned model on the same held-out examples, and their answers side by side."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.conditions import Stage
from finetune_api.reports import EvaluateReport, SampleAnswer, Summary
from finetune_api.spec import Baseline, MethodType
from finetune_api.status import FEWEST_EXAMPLES, EvaluationStatus
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.evaluation.answers import Answer, answer, end_tokens
from finetune_trainer.evaluation.few_shot import few_shot_row
from finetune_trainer.evaluation.questions import Questions, choose, context_of
from finetune_trainer.evaluation.scoring import ExampleScores, Row, score
from finetune_trainer.evaluation.statistics import baseline, difference, scores
from finetune_trainer.training.device import Device, choose_device, limit_threads
from finetune_trainer.training.inputs import Prepared, load_model, load_prepared, load_tokenizer
from finetune_trainer.training.trainer import free_memory
from finetune_trainer.verification import load_tuned

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What is measured. `few_shot` are the same rows with training examples before them, when asked for."""

    rows: Sequence[Row]
    questions: Questions
    few_shot: Sequence[Row] | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's results on HeldOut."""

    examples: ExampleScores
    answers: Sequence[Answer]
    few_shot: ExampleScores | None = None


def run(context: StageContext) -> Summary:
    """Measure and leave `evaluation/report.json`. The gate is judged by the control plane, not here.

    Raises ArtifactInvalidError when the model or the dataset is damaged or a loss is not finite.
    """
    prepared = load_prepared(context)
    limit_threads(prepared.resolved.model_parameters)
    artifacts.verify(context.model_dir)
    device = choose_device(context.gpus, prepared.resolved.precision)
    tokenizer = load_tokenizer(context.model_dir)
    adapter = context.config.method.type is MethodType.LORA
    if adapter:
        base, tuned, held_out = _measure_adapter(context, prepared, device, tokenizer)
    else:
        base, tuned, held_out = _measure_models(context, prepared, device, tokenizer)
    report, notes = _report(base, tuned, held_out, context.config.hyperparameters.seed)
    artifacts.write_json(
        context.evaluation_dir / "report.json", report.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    )
    if device.note:
        notes.insert(0, device.note)
    return Summary(stage=Stage.EVALUATE, ok=True, evaluation=report.evaluation, notes=notes)


def _measure_adapter(
    context: StageContext, prepared: Prepared, device: Device, tokenizer: PreTrainedTokenizerBase
) -> tuple[Measured, Measured, HeldOut]:
    """Base and tuned on the same loaded weights: the base is the model with its adapter switched off."""
    model = load_tuned(context.model_dir, prepared.base_dir, device, adapter=True)
    held_out = _held_out(context, prepared, tokenizer, model)
    with model.disable_adapter():
        base = _measure("base", model, tokenizer, held_out, few_shot=True)
    return base, _measure("tuned", model, tokenizer, held_out, few_shot=False), held_out


def _measure_models(
    context: StageContext, prepared: Prepared, device: Device, tokenizer: PreTrainedTokenizerBase
) -> tuple[Measured, Measured, HeldOut]:
    """One after the other: two whole models need not fit into memory together."""
    with _loaded(load_model(prepared.base_dir, device).eval()) as model:
        held_out = _held_out(context, prepared, tokenizer, model)
        base = _measure("base", model, tokenizer, held_out, few_shot=True)
        del model
    with _loaded(load_tuned(context.model_dir, prepared.base_dir, device, adapter=False)) as model:
        return base, _measure("tuned", model, tokenizer, held_out, few_shot=False), held_out


@contextmanager
def _loaded(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    yield model
    model.to("meta")  # gives the memory back even where something still refers to the model
    free_memory()


def _held_out(
    context: StageContext, prepared: Prepared, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> HeldOut:
    settings = context.config.evaluation
    positions = prepared.held_out(settings.max_examples)
    if not positions:
        raise ArtifactInvalidError(f"{prepared.dataset_dir}/validation is empty", advice="run Prepare again")
    rows = prepared.rows("validation").select(positions).to_list()
    examples = prepared.held_out_examples(positions)
    questions = choose(examples, tokenizer, context_of(model, tokenizer), settings.sample_answers)
    few_shot = None
    if Baseline.FEW_SHOT in settings.baselines:
        shots = list(itertools.islice(prepared.examples("train"), settings.few_shot_examples))
        few_shot = _few_shot_rows(shots, examples, rows, tokenizer, model)
    return HeldOut(rows, questions, few_shot)


def _few_shot_rows(
    shots: Sequence[dict[str, Any]],
    examples: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
) -> list[Row]:
    limit = context_of(model, tokenizer)
    stop_ids = frozenset(end_tokens(model, tokenizer))
    return [
        few_shot_row(shots, example, row, tokenizer, stop_ids, limit)
        for example, row in zip(examples, rows, strict=True)
    ]


def _measure(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: HeldOut, *, few_shot: bool
) -> Measured:
    examples = score(model, held_out.rows)
    log.info("model=%s examples=%d loss=%.4f", name, len(held_out.rows), examples.mean_loss)
    shots = score(model, held_out.few_shot) if few_shot and held_out.few_shot is not None else None
    answers = answer(model, tokenizer, held_out.questions.asked)
    return Measured(examples, answers, shots)


def _report(base: Measured, tuned: Measured, held_out: HeldOut, seed: int) -> tuple[EvaluateReport, list[str]]:
    """The report, and notes for the user on what it does not say."""
    stopped = [a.stopped for a in tuned.answers]
    base_scores, base_notes = baseline(base.examples, "base", seed)
    few_shot, few_shot_notes = (None, []) if base.few_shot is None else baseline(base.few_shot, "few-shot", seed)
    evaluation = EvaluationStatus(
        examples=len(held_out.rows),
        base=base_scores,
        few_shot=few_shot,
        tuned=scores(tuned.examples, "tuned", seed),
        loss_difference=difference(base.examples, tuned.examples, seed) if base_scores else None,
        stopped_by_itself=sum(stopped) / len(stopped) if stopped else None,
    )
    notes = [*base_notes, *few_shot_notes, *held_out.questions.notes]
    if not evaluation.says_enough:
        notes.insert(
            0,
            f"only {evaluation.examples} held-out example(s) were measured: a difference between base and tuned may be "
            f"chance; hold out at least {FEWEST_EXAMPLES}",
        )
    samples = [
        SampleAnswer(prompt=q.prompt, expected=q.expected, base=b.text, tuned=t.text, tuned_stopped=t.stopped)
        for q, b, t in zip(held_out.questions.asked, base.answers, tuned.answers, strict=True)
    ]
    report = EvaluateReport(evaluation=evaluation, samples=samples, questions_left_out=held_out.questions.too_long)
    return report, notes
