"""Evaluate: base, few-shot and tuned model on the same held-out examples, and their answers side by side."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.conditions import Stage
from finetune_api.reports import EvaluateReport, SampleAnswer, Summary
from finetune_api.spec import Baseline
from finetune_api.status import FEWEST_EXAMPLES, EvaluationStatus
from finetune_api.tasks import Metric
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.evaluation.few_shot import few_shot_row
from finetune_trainer.evaluation.questions import Questions, choose
from finetune_trainer.evaluation.statistics import baseline, difference, scores
from finetune_trainer.methods import proof
from finetune_trainer.tasks.kind import Answer, HeldOut, Measured, Row, TaskKind
from finetune_trainer.training.device import Device, choose_device, limit_threads
from finetune_trainer.training.inputs import Prepared, load_model, load_prepared, load_tokenizer, stop_tokens
from finetune_trainer.training.trainer import free_memory
from finetune_trainer.verification import load_tuned

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """What both models are measured on. `few_shot` are the same examples with training examples before them, when
    asked for."""

    held_out: HeldOut
    questions: Questions
    few_shot: HeldOut | None


@dataclass(frozen=True, slots=True)
class Results:
    """One model's."""

    measured: Measured
    generated: Mapping[Metric, float]
    answers: Sequence[Answer]
    few_shot: Measured | None = None


def run(context: StageContext) -> Summary:
    """Measure and leave `evaluation/report.json`. The gate is judged by the control plane, not here.

    Raises ArtifactInvalidError when the model or the dataset is damaged or a loss is not finite.
    """
    prepared = load_prepared(context)
    limit_threads(prepared.resolved.model_parameters)
    artifacts.verify(context.model_dir)
    device = choose_device(context.gpus, prepared.resolved.precision)
    tokenizer = load_tokenizer(context.model_dir)
    subject = _subject(context, prepared, tokenizer)
    measure = _measure_adapter if proof.form_of(context.model_dir) == "Adapter" else _measure_models
    base, tuned = measure(context, prepared, device, subject)
    report, notes = _report(base, tuned, subject, context.config.hyperparameters.seed)
    artifacts.write_json(
        context.evaluation_dir / "report.json", report.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    )
    if device.note:
        notes.insert(0, device.note)
    return Summary(stage=Stage.EVALUATE, ok=True, evaluation=report.evaluation, notes=notes)


def _measure_adapter(
    context: StageContext, prepared: Prepared, device: Device, subject: Subject
) -> tuple[Results, Results]:
    """Base and tuned on the same loaded weights: the base is the model with its adapter switched off."""
    model = load_tuned(context.model_dir, prepared.base_dir, device, prepared.kind, prepared.facts, "Adapter")
    with model.disable_adapter():
        base = _measure("base", model, prepared.kind, subject, None)
    return base, _measure("tuned", model, prepared.kind, subject, base)


def _measure_models(
    context: StageContext, prepared: Prepared, device: Device, subject: Subject
) -> tuple[Results, Results]:
    """One after the other: two whole models need not fit into memory together."""
    kind, facts = prepared.kind, prepared.facts
    with _loaded(load_model(prepared.base_dir, device, kind, facts).model.eval()) as model:
        base = _measure("base", model, kind, subject, None)
        del model
    with _loaded(load_tuned(context.model_dir, prepared.base_dir, device, kind, facts, "Model")) as model:
        return base, _measure("tuned", model, kind, subject, base)


@contextmanager
def _loaded(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    yield model
    model.to("meta")  # gives the memory back even where something still refers to the model
    free_memory()


def _subject(context: StageContext, prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> Subject:
    settings = context.config.evaluation
    held_out = prepared.measured_on(settings.max_examples, tokenizer)
    if not held_out.rows:
        raise ArtifactInvalidError(f"{prepared.dataset_dir}/validation is empty", advice="run Prepare again")
    questions = choose(prepared.kind.ask(held_out), held_out.context, settings.sample_answers)
    few_shot = None
    if Baseline.FEW_SHOT in settings.baselines:
        shots = list(itertools.islice(prepared.examples("train"), settings.few_shot_examples))
        few_shot = replace(held_out, rows=_few_shot_rows(shots, held_out, stop_tokens(prepared.base_dir, tokenizer)))
    return Subject(held_out, questions, few_shot)


def _few_shot_rows(shots: Sequence[Mapping[str, Any]], held_out: HeldOut, stop_ids: frozenset[int]) -> list[Row]:
    return [
        few_shot_row(shots, example, row, held_out.tokenizer, stop_ids, held_out.context)
        for example, row in zip(held_out.examples, held_out.rows, strict=True)
    ]


def _measure(name: str, model: PreTrainedModel, kind: TaskKind, subject: Subject, base: Results | None) -> Results:
    """All of one model. `base` is None when it is the base itself."""
    held_out = subject.held_out
    measured = kind.measure(model, held_out, reference=base.measured if base else None)
    log.info("model=%s examples=%d loss=%.4f", name, len(held_out.rows), measured.mean_loss)
    few_shot = kind.measure(model, subject.few_shot) if subject.few_shot and base is None else None
    generated = kind.generated(model, held_out)
    answers = kind.answer(model, held_out.tokenizer, subject.questions.asked, facts=held_out.facts)
    return Results(measured, generated, answers, few_shot)


def _report(base: Results, tuned: Results, subject: Subject, seed: int) -> tuple[EvaluateReport, list[str]]:
    """The report, and notes for the user on what it does not say."""
    stopped = [each.stopped for each in tuned.answers if each.stopped is not None]
    base_scores, base_notes = baseline(base.measured, "base", seed, base.generated)
    few_shot, few_shot_notes = (None, []) if base.few_shot is None else baseline(base.few_shot, "few-shot", seed)
    evaluation = EvaluationStatus(
        examples=len(subject.held_out.rows),
        base=base_scores,
        few_shot=few_shot,
        tuned=scores(tuned.measured, "tuned", seed, tuned.generated),
        loss_difference=difference(base.measured, tuned.measured, seed) if base_scores else None,
        stopped_by_itself=sum(stopped) / len(stopped) if stopped else None,
    )
    notes = [*base_notes, *few_shot_notes, *subject.questions.notes]
    if not evaluation.says_enough:
        notes.insert(
            0,
            f"only {evaluation.examples} held-out example(s) were measured: a difference between base and tuned may be "
            f"chance; hold out at least {FEWEST_EXAMPLES}",
        )
    samples = [
        SampleAnswer(
            prompt=q.prompt, expected=q.expected, base=b.text, tuned=t.text, tuned_stopped=t.stopped is not False
        )
        for q, b, t in zip(subject.questions.asked, base.answers, tuned.answers, strict=True)
    ]
    report = EvaluateReport(
        evaluation=evaluation,
        samples=samples,
        questions_left_out=subject.questions.too_long,
        details=dict(tuned.measured.details),
    )
    return report, notes
