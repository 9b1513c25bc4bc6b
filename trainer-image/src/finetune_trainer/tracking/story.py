"""What is told of a run, the same to every tracker, out of the files that the stages have left."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.conditions import Stage
from finetune_api.measured import Scores
from finetune_api.reports import EvaluateReport, Summary, TrainingReport
from finetune_trainer.context import StageContext
from finetune_trainer.errors import ArtifactInvalidError

# The models whose figures are told, by their names in the status.
MODELS = ("base", "few_shot", "retrieval", "previous", "tuned")
CURVES = {"loss": "train/loss", "eval_loss": "eval/loss", "learning_rate": "train/learning_rate"}


@dataclass(frozen=True, slots=True)
class Point:
    """Values at a step. `time` is in seconds since 1970."""

    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Story:
    """`results` are figures of the finished run: MODEL/METRIC. `tags` are its lineage."""

    name: str
    started: float
    ended: float
    parameters: Mapping[str, str]
    points: tuple[Point, ...]
    results: Mapping[str, float]
    tags: Mapping[str, str]


def tell(context: StageContext) -> Story:
    """Raises ArtifactInvalidError when a report is gone or damaged.

    The training's report has steps without times: points are spread evenly over the time that Train took, by its own
    clock, which ended when the report was written.
    """
    path = context.training_report_path
    try:
        training = TrainingReport.model_validate_json(path.read_bytes())
        train = Summary.model_validate_json(context.report_path(Stage.TRAIN).read_bytes())
        report = EvaluateReport.model_validate_json((context.evaluation_dir / "report.json").read_bytes())
        ended = path.stat().st_mtime
    except (OSError, ValueError) as error:
        raise ArtifactInvalidError(
            f"a report of the run cannot be read: {error}", advice="set a new rerunToken to make the run anew"
        ) from error
    started = ended - (train.train_seconds or 0.0)
    config = context.config
    return Story(
        name=f"{config.job}-r{config.run}",
        started=started,
        ended=ended,
        parameters=dict(_parameters(context, train)),
        points=tuple(_points(training, started, ended)),
        results=dict(_results(report)),
        tags={
            "finetune-operator.io/job": f"{config.namespace}/{config.job}",
            "finetune-operator.io/run": str(config.run),
            "finetune-operator.io/run-hash": config.hash,
            "finetune-operator.io/base-model": config.base_model.told,
            "finetune-operator.io/model-sha256": train.model.sha256 if train.model else "",
        },
    )


def _points(training: TrainingReport, started: float, ended: float) -> Iterator[Point]:
    last = max((point.step for point in training.points), default=1) or 1
    for point in training.points:
        values = {name: getattr(point, field) for field, name in CURVES.items() if getattr(point, field) is not None}
        yield Point(point.step, started + (ended - started) * point.step / last, values)


def _parameters(context: StageContext, train: Summary) -> Iterator[tuple[str, str]]:
    config = context.config
    yield "task", config.task.value
    yield "base_model", config.base_name
    yield "method", config.method.type.value
    yield "seed", str(config.hyperparameters.seed)
    if train.resolved:
        for name, value in train.resolved.to_wire().items():
            yield name, str(value)


def _results(report: EvaluateReport) -> Iterator[tuple[str, float]]:
    found = report.evaluation
    for name in MODELS:
        yield from ((f"{name}/{metric}", value) for metric, value in _figures(getattr(found, name)))
    for check in found.checks:
        if check.asked:
            yield from _both("check", check.name, check.base, check.tuned)
    for benchmark in found.benchmarks:
        yield from _both(
            "benchmark", f"{benchmark.task}/{benchmark.metric or 'figure'}", benchmark.base, benchmark.tuned
        )
    if found.judge and found.judge.share is not None:
        yield "tuned/judge/share", found.judge.share


def _both(kind: str, name: str, base: float | None, tuned: float) -> Iterator[tuple[str, float]]:
    """A figure of base and tuned model, by a name that every tracker takes."""
    plain = re.sub(r"[^\w./ -]", "-", name)  # lm-eval's metrics have commas
    for model, value in (("base", base), ("tuned", tuned)):
        if value is not None and math.isfinite(value):
            yield f"{model}/{kind}/{plain}", value


def _figures(scores: Scores | None) -> Iterator[tuple[str, float]]:
    for metric, value in (scores.to_wire() if scores else {}).items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield metric, float(value)


def folder_of(context: StageContext) -> Path:
    """What trackers keep on the claim."""
    return context.run_dir / "tracking"
