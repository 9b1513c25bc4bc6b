"""Everything that is told of a run, read from its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune_api.conditions import Stage
from finetune_api.dataset import DataFile
from finetune_api.gate import judge
from finetune_api.lineage import Ancestor
from finetune_api.meanings import METRIC_MEANINGS, PLAIN_METRICS
from finetune_api.measured import BenchmarkScore, EvaluationStatus, GateStatus, Scores
from finetune_api.reports import Environment, EvaluateReport, Summary, TrainingReport
from finetune_api.run_config import RunConfig
from finetune_api.tasks import Metric
from finetune_trainer.context import StageContext
from finetune_trainer.methods import proof
from finetune_trainer.methods.kind import Form


@dataclass(frozen=True, slots=True)
class RunFacts:
    """`gate` is the verdict by the rules as they were when the run was measured; they may change at any time.
    `train` and `training` are empty where an earlier version, that kept less, trained the run."""

    config: RunConfig
    prepare: Summary
    train: Summary
    training: TrainingReport
    report: EvaluateReport
    notes: Sequence[str]
    environment: Environment
    gate: GateStatus
    form: Form

    @property
    def evaluation(self) -> EvaluationStatus:
        return self.report.evaluation

    @property
    def models(self) -> list[tuple[str, Scores]]:
        """What was measured, by the name that a table gives it, the tuned model last."""
        found = self.evaluation
        columns = (
            ("Base", found.base),
            ("Base with fixed examples", found.few_shot),
            ("Base with the nearest examples", found.retrieval),
            (f"Run {found.previous_run}", found.previous),
            ("Tuned", found.tuned),
        )
        return [(name, scores) for name, scores in columns if scores is not None]

    def metrics(self) -> Iterator[Metric]:
        """Those that at least one model has."""
        for metric in METRIC_MEANINGS:
            if any(scores.value(metric) is not None for _, scores in self.models):
                yield metric


def collect(context: StageContext, report: EvaluateReport, notes: Sequence[str], environment: Environment) -> RunFacts:
    """The facts of a run that was just measured."""
    return RunFacts(
        config=context.config,
        prepare=_summary(context, Stage.PREPARE),
        train=_summary(context, Stage.TRAIN),
        training=_training(context),
        report=report,
        notes=notes,
        environment=environment,
        gate=judge(context.config.evaluation.gate.rules_, report.evaluation),
        form=proof.form_of(context.model_dir),
    )


def _summary(context: StageContext, stage: Stage) -> Summary:
    try:
        return Summary.model_validate_json(context.report_path(stage).read_bytes())
    except (OSError, ValueError):
        return Summary(stage=stage, ok=True)


def _training(context: StageContext) -> TrainingReport:
    try:
        return TrainingReport.model_validate_json(context.training_report_path.read_bytes())
    except (OSError, ValueError):
        return TrainingReport()


def figure(metric: Metric, value: float | None) -> str:
    """A figure as a table shows it."""
    if value is None:
        return "–"
    if metric not in PLAIN_METRICS:
        return f"{value:.1%}"
    return f"{value:,.1f}" if metric in (Metric.PERPLEXITY, Metric.BLEU, Metric.CHRF) else f"{value:.3f}"


def interval(scores: Scores) -> str:
    """The loss's 95 % interval, empty where there is none."""
    spread = scores.loss_interval
    return f"{spread.low:.3f} to {spread.high:.3f}" if spread else ""


def tokens(scores: Scores) -> str:
    """Of a request."""
    return "–" if scores.request_tokens is None else f"{scores.request_tokens:,.0f}"


def settings(facts: RunFacts) -> Mapping[str, str]:
    """What the training did, as `auto` was resolved, by name."""
    values = facts.train.resolved or facts.prepare.resolved
    known = values.to_wire() if values else {}
    named = {"method": facts.config.method.type.value, "seed": facts.config.hyperparameters.seed, **known}
    return {_words(name): _value(value) for name, value in named.items()}


def _words(name: str) -> str:
    """learningRate -> learning rate."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ancestors(config: RunConfig) -> list[Ancestor]:
    """The runs below this one, the nearest first."""
    return config.continued_from.lineage if config.continued_from else []


def lineage(facts: RunFacts) -> Mapping[str, str]:
    """Where the model comes from, by name."""
    config, prepared, data = facts.config, facts.prepare, facts.prepare.dataset
    revision = prepared.resolved.revision if prepared.resolved else None
    found = {
        "job": f"{config.namespace}/{config.job}",
        "run": f"{config.run} ({config.trigger})",
        "hash of everything that training depends on": config.hash,
        "base model": config.base_model.told + (f" at {revision}" if revision else ""),
        "built on": "; ".join(f"run {each.run} of {each.job} ({each.mode})" for each in _ancestors(config)) or None,
        "training data": "; ".join(_weighed(file, weight) for _, file, weight in config.dataset.train.parts),
        "held-out data": _held_out(config),
        "SHA-256 of the data": data.sha256 if data else None,
        "SHA-256 of the model's manifest": facts.train.model.sha256 if facts.train.model else None,
        "compared with the earlier run": str(facts.evaluation.previous_run or "") or None,
    }
    return {name: value for name, value in found.items() if value}


def _weighed(file: DataFile, weight: float) -> str:
    return file.told + (f" (weight {weight:g})" if weight != 1 else "")


def _held_out(config: RunConfig) -> str:
    fraction = config.dataset.validation.fraction
    return f"{fraction:.0%} of the training data" if fraction else config.dataset.validation.told


def surroundings(facts: RunFacts) -> Mapping[str, str]:
    """On what it was trained and measured."""
    trained, measured = facts.training.environment, facts.environment
    versions = trained.versions or measured.versions
    found = {
        "image": trained.image or measured.image or "none: on a laptop",
        "trained on": ", ".join(part for part in (trained.device, trained.precision) if part),
        "the training took": measured.training_cost.told if measured.training_cost else "",
        "measured on": f"{measured.device}, {measured.precision}",
        "Python": trained.python or measured.python,
        **versions,
    }
    return {name: value for name, value in found.items() if value}


def data_figures(facts: RunFacts) -> Mapping[str, str]:
    """What Prepare found, by name; nothing where its report is gone."""
    data = facts.prepare.dataset
    if data is None:
        return {}
    found = {
        "training examples": f"{data.train_examples:,}",
        "held-out examples": f"{data.validation_examples:,}",
        "tokens of the training examples": f"{data.train_tokens:,}",
        "of which are learnt": f"{data.loss_tokens:,}",
    }
    if data.length:
        found["tokens of an example"] = (
            f"{data.length.min} to {data.length.max}, half of them at most {data.length.p50}"
        )
    if data.labels:
        found["labels"] = ", ".join(f"{each.label} ({each.count:,})" for each in data.labels[:20])
    words = {
        "truncated": "cut",
        "dropped": "left out",
        "duplicates": "occur more than once",
        "overlap": "held out, too",
    }
    return found | {word: f"{count:,}" for name, word in words.items() if (count := getattr(data, name))}


def change(score: BenchmarkScore) -> str:
    """What the tuning did to a benchmark, with how sure that is."""
    if score.difference is None:
        return f"{score.tuned - score.base:+.4g}"
    return f"{score.difference.low:+.3g} to {score.difference.high:+.3g}: {score.change}"
