"""What every model is measured on, and what one model's results are."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.evaluation import Baseline, EvaluationSpec
from finetune_api.tasks import Metric
from finetune_trainer.benchmarks.measure import Benchmark, Done, do
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.evaluation import retrieval
from finetune_trainer.evaluation.checking import Asked, ask
from finetune_trainer.evaluation.few_shot import few_shot_row
from finetune_trainer.tasks.kind import Answer, HeldOut, Measured, TaskKind
from finetune_trainer.training.inputs import Prepared, stop_tokens

log = logging.getLogger(__name__)
Prompting = Callable[[PreTrainedModel], HeldOut]
"""From the base model to the held-out examples with training examples before them."""


@dataclass(frozen=True, slots=True)
class Subject:
    """`prompted` are the baselines that put examples into the prompt, as far as they were asked for."""

    kind: TaskKind
    held_out: HeldOut
    asked: Asked
    prompted: Mapping[Baseline, Prompting]
    benchmarks: Sequence[Benchmark] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """One model's. `answers` are to all of the subject's questions; none were asked of an earlier run."""

    measured: Measured
    generated: Mapping[Metric, float]
    answers: Sequence[Answer] = ()
    prompted: Mapping[Baseline, Measured] = field(default_factory=dict)
    benchmarks: Mapping[str, Done] = field(default_factory=dict)


def subject_of(
    prepared: Prepared, settings: EvaluationSpec, tokenizer: PreTrainedTokenizerBase, benchmarks_dir: Path
) -> Subject:
    """Raises ArtifactInvalidError when nothing was held out."""
    held_out = prepared.measured_on(settings.max_examples, tokenizer)
    if not held_out.rows:
        raise ArtifactInvalidError(f"{prepared.dataset_dir}/validation is empty", advice="set a new spec.rerunToken")
    held_out = replace(held_out, answer_tokens=settings.answer_tokens)
    stop_ids = stop_tokens(prepared.base_dir, tokenizer)
    ways = {
        Baseline.FEW_SHOT: lambda model: _fixed(prepared, held_out, settings.few_shot_examples, stop_ids),
        Baseline.RETRIEVAL: lambda model: _nearest(prepared, held_out, settings.few_shot_examples, stop_ids, model),
    }
    prompted = {baseline: way for baseline, way in ways.items() if baseline in settings.baselines}
    benchmarks = [Benchmark(wanted, benchmarks_dir / wanted.task) for wanted in settings.benchmarks]
    return Subject(prepared.kind, held_out, ask(prepared.kind, held_out, settings), prompted, benchmarks)


def measure_base(model: PreTrainedModel, subject: Subject) -> Results:
    """All of the base: by itself, and with examples in its prompt."""
    found = _measure("base", model, subject, None)
    prompted = {name: subject.kind.measure(model, way(model)) for name, way in subject.prompted.items()}
    for name, measured in prompted.items():
        log.info("model=base with %s loss=%.4f tokens=%.0f", name, measured.mean_loss, measured.request_tokens or 0)
    return replace(found, answers=_answers(model, subject), prompted=prompted, benchmarks=_benchmarks(model, subject))


def measure_tuned(model: PreTrainedModel, subject: Subject, base: Results) -> Results:
    """All of the tuned model."""
    found = _measure("tuned", model, subject, base)
    return replace(found, answers=_answers(model, subject), benchmarks=_benchmarks(model, subject))


def measure_earlier(model: PreTrainedModel, subject: Subject, base: Results) -> Results:
    """What the gate may compare with; its answers are not asked for."""
    return _measure("previous", model, subject, base)


def _measure(name: str, model: PreTrainedModel, subject: Subject, base: Results | None) -> Results:
    """`base` is None when it is the base itself."""
    measured = subject.kind.measure(model, subject.held_out, reference=base.measured if base else None)
    log.info("model=%s examples=%d loss=%.4f", name, len(subject.held_out.rows), measured.mean_loss)
    return Results(measured, subject.kind.generated(model, subject.held_out))


def _answers(model: PreTrainedModel, subject: Subject) -> list[Answer]:
    held_out = subject.held_out
    return subject.kind.answer(model, held_out.tokenizer, subject.asked.questions, facts=held_out.facts)


def _benchmarks(model: PreTrainedModel, subject: Subject) -> dict[str, Done]:
    return do(model, subject.held_out.tokenizer, subject.held_out.context, subject.benchmarks)


def _fixed(prepared: Prepared, held_out: HeldOut, count: int, stop_ids: frozenset[int]) -> HeldOut:
    shots = list(itertools.islice(prepared.examples("train"), count))
    return _with_shots(held_out, [shots] * len(held_out.examples), stop_ids)


def _nearest(
    prepared: Prepared, held_out: HeldOut, count: int, stop_ids: frozenset[int], model: PreTrainedModel
) -> HeldOut:
    train = list(itertools.islice(prepared.examples("train"), retrieval.MOST_EXAMPLES))
    shots = retrieval.nearest(model, held_out.tokenizer, train, held_out.examples, count)
    return _with_shots(held_out, shots, stop_ids)


def _with_shots(held_out: HeldOut, shots: Sequence[Sequence[Mapping[str, Any]]], stop_ids: frozenset[int]) -> HeldOut:
    rows = [
        few_shot_row(before, example, row, held_out.tokenizer, stop_ids, held_out.context)
        for before, example, row in zip(shots, held_out.examples, held_out.rows, strict=True)
    ]
    return replace(held_out, rows=rows)
