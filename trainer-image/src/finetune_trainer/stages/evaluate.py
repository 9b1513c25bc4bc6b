"""Evaluate: base, baselines and tuned model on the same held-out examples, and their answers side by side."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from finetune_api.conditions import Stage
from finetune_api.evaluation import Baseline, EvaluationSpec
from finetune_api.measured import FEWEST_EXAMPLES, EvaluationStatus, Scores
from finetune_api.reports import EvaluateReport, SampleAnswer, Summary
from finetune_trainer import artifacts
from finetune_trainer.benchmarks.measure import compared as compared_benchmarks
from finetune_trainer.context import StageContext
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation import previous
from finetune_trainer.evaluation.checking import check_answers
from finetune_trainer.evaluation.checks import require_checks
from finetune_trainer.evaluation.statistics import baseline, difference, scores
from finetune_trainer.evaluation.subject import (
    Results,
    Subject,
    measure_base,
    measure_earlier,
    measure_tuned,
    subject_of,
)
from finetune_trainer.methods import proof
from finetune_trainer.methods.continued import as_before
from finetune_trainer.reporting.leave import leave_report
from finetune_trainer.training.device import Device, choose_device, limit_threads
from finetune_trainer.training.history import environment
from finetune_trainer.training.inputs import Prepared, load_model, load_prepared, load_tokenizer
from finetune_trainer.training.trainer import free_memory
from finetune_trainer.verification import load_tuned

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Earlier:
    """The baseline Previous: `results` is None when there is none, or when `notes` say why it was not measured."""

    run: int | None = None
    results: Results | None = None
    notes: list[str] = field(default_factory=list)


def run(context: StageContext) -> Summary:
    """Measure and leave `evaluation/report.json`. The gate is judged by the control plane, not here.

    Raises UserInputError when a check cannot be run, ArtifactInvalidError when the model or the dataset is damaged or a
    loss is not finite.
    """
    settings = context.config.evaluation
    require_checks(settings.checks)
    prepared = load_prepared(context)
    limit_threads(prepared.resolved.model_parameters)
    artifacts.verify(context.model_dir)
    device = choose_device(context.gpus, prepared.resolved.precision)
    tokenizer = load_tokenizer(context.model_dir)
    subject = subject_of(prepared, settings, tokenizer, context.benchmarks_dir)
    measure = _measure_adapter if proof.form_of(context.model_dir) == "Adapter" else _measure_models
    base, tuned = measure(context, prepared, device, subject)
    earlier = _measure_previous(context, prepared, device, subject, base)
    report, notes = _report(base, tuned, earlier, subject, settings, context.config.hyperparameters.seed)
    if device.note:
        notes.insert(0, device.note)
    report = report.model_copy(update={"notes": notes, "environment": environment(device)})
    artifacts.write_json(
        context.evaluation_dir / "report.json", report.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    )
    leave_report(context, report, notes, report.environment)
    return Summary(stage=Stage.EVALUATE, ok=True, evaluation=report.evaluation, notes=notes)


def _measure_adapter(
    context: StageContext, prepared: Prepared, device: Device, subject: Subject
) -> tuple[Results, Results]:
    """Base and tuned on the same loaded weights: the base is the model with its adapter switched off, or with the one
    that was gone on with."""
    loaded = load_tuned(context.model_dir, prepared.base_dir, device, prepared.kind, prepared.facts, "Adapter")
    with _loaded(loaded) as model:
        del loaded
        with as_before(model, context.before):
            base = measure_base(model, subject)
        return base, measure_tuned(model, subject, base)


def _measure_models(
    context: StageContext, prepared: Prepared, device: Device, subject: Subject
) -> tuple[Results, Results]:
    """One after the other: two whole models need not fit into memory together."""
    kind, facts = prepared.kind, prepared.facts
    with _loaded(load_model(prepared.base_dir, device, kind, facts).model.eval()) as model:
        base = measure_base(model, subject)
        del model
    with _loaded(load_tuned(context.model_dir, prepared.base_dir, device, kind, facts, "Model")) as model:
        return base, measure_tuned(model, subject, base)


def _measure_previous(
    context: StageContext, prepared: Prepared, device: Device, subject: Subject, base: Results
) -> Earlier:
    """A model of earlier that cannot be measured is said, and fails nothing."""
    if Baseline.PREVIOUS not in context.config.evaluation.baselines:
        return Earlier()
    wanted = previous.wanted()
    if wanted is None:
        return Earlier(notes=["Previous: there is no earlier promoted run to compare with"])
    try:
        found = previous.comparable(wanted, context, prepared, subject.held_out.tokenizer)
        loaded = load_tuned(found.directory, found.base_dir, device, prepared.kind, prepared.facts, found.form)
    except (TrainerError, OSError, ValueError) as error:
        log.warning("previous run: %s", error)
        return Earlier(wanted.run, notes=[f"Previous: {error}"])
    with _loaded(loaded) as model:
        del loaded
        return Earlier(wanted.run, measure_earlier(model, subject, base))


@contextmanager
def _loaded(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    yield model
    model.to("meta")  # gives the memory back even where something still refers to the model
    free_memory()


def _report(
    base: Results, tuned: Results, earlier: Earlier, subject: Subject, settings: EvaluationSpec, seed: int
) -> tuple[EvaluateReport, list[str]]:
    """The report, and notes for the user on what it does not say."""
    samples = subject.asked.samples
    stopped = [each.stopped for each in tuned.answers[:samples] if each.stopped is not None]
    compared, notes = _compared(base, earlier, seed)
    checks = check_answers(settings.checks, subject.asked, base.answers, tuned.answers)
    benchmarks, unmeasured = compared_benchmarks(subject.benchmarks, base.benchmarks, tuned.benchmarks, seed)
    evaluation = EvaluationStatus(
        examples=len(subject.held_out.rows),
        **compared,
        previous_run=earlier.run,
        tuned=scores(tuned.measured, "tuned", seed, tuned.generated),
        loss_difference=difference(base.measured, tuned.measured, seed) if compared.get("base") else None,
        stopped_by_itself=sum(stopped) / len(stopped) if stopped else None,
        checks=[check.score for check in checks],
        benchmarks=[benchmark.score for benchmark in benchmarks],
    )
    notes = [*notes, *earlier.notes, *unmeasured, *subject.asked.notes]
    if not evaluation.says_enough:
        notes.insert(
            0,
            f"only {evaluation.examples} held-out example(s) were measured: a difference between base and tuned may be "
            f"chance; hold out at least {FEWEST_EXAMPLES}",
        )
    report = EvaluateReport(
        evaluation=evaluation,
        samples=_side_by_side(base, tuned, subject, subject.asked.samples),
        to_judge=_side_by_side(base, tuned, subject, subject.asked.judged),
        checks=checks,
        benchmarks=benchmarks,
        questions_left_out=subject.asked.too_long,
        details=dict(tuned.measured.details),
    )
    return report, notes


def _compared(base: Results, earlier: Earlier, seed: int) -> tuple[dict[str, Scores | None], list[str]]:
    """Everything that the tuned model is compared with, by its field of EvaluationStatus."""
    found = {"base": ("base", base.measured, base.generated)}
    for way, measured in base.prompted.items():
        found[FIELDS[way]] = (WORDS[way], measured, {})
    if earlier.results:
        found["previous"] = (f"run {earlier.run}'s", earlier.results.measured, earlier.results.generated)
    judged = {name: baseline(measured, word, seed, more) for name, (word, measured, more) in found.items()}
    return {name: one for name, (one, _) in judged.items()}, [note for _, notes in judged.values() for note in notes]


FIELDS = {Baseline.FEW_SHOT: "few_shot", Baseline.RETRIEVAL: "retrieval"}
WORDS = {Baseline.FEW_SHOT: "few-shot", Baseline.RETRIEVAL: "retrieval"}


def _side_by_side(base: Results, tuned: Results, subject: Subject, most: int) -> list[SampleAnswer]:
    """The first `most` questions, with all answers."""
    shown = zip(subject.asked.questions[:most], base.answers, tuned.answers, strict=False)
    return [
        SampleAnswer(
            prompt=q.prompt, expected=q.expected, base=b.text, tuned=t.text, tuned_stopped=t.stopped is not False
        )
        for q, b, t in shown
    ]
