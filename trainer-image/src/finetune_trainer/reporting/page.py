"""The run report: one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.conditions import GateVerdict
from finetune_api.meanings import METRIC_MEANINGS
from finetune_api.measured import Scores
from finetune_api.tasks import Metric
from finetune_trainer.pages.charts import Chart, curves
from finetune_trainer.pages.page import render
from finetune_trainer.reporting import facts as told
from finetune_trainer.reporting.details import tables
from finetune_trainer.reporting.facts import RunFacts

SECTIONS = (
    ("measured", "Is it better?"),
    ("details", "In detail"),
    ("checks", "Behaviour"),
    ("benchmarks", "Benchmarks"),
    ("answers", "Answers side by side"),
    ("training", "Training"),
    ("data", "Data"),
    ("lineage", "Lineage and environment"),
)


def page(facts: RunFacts) -> str:
    """The whole page."""
    evaluation = facts.evaluation
    report = facts.report
    detailed = tables(report.details)
    shown = {
        "details": bool(detailed),
        "checks": bool(report.checks),
        "benchmarks": bool(report.benchmarks),
        "answers": bool(report.samples),
    }
    return render(
        "run.html",
        sections=[section for section in SECTIONS if shown.get(section[0], True)],
        config=facts.config,
        evaluation=evaluation,
        passed=facts.gate.verdict is GateVerdict.PASSED,
        gate=facts.gate,
        tiles=_tiles(facts),
        models=[name for name, _ in facts.models],
        rows=_rows(facts),
        tables=detailed,
        checks=_checks(facts),
        benchmarks=[(each, told.change(each.score)) for each in report.benchmarks],
        samples=facts.report.samples,
        base_answers=any(sample.base for sample in facts.report.samples),
        charts=_charts(facts),
        settings=told.settings(facts),
        data=told.data_figures(facts),
        problems=facts.prepare.dataset.problems if facts.prepare.dataset else [],
        lineage=told.lineage(facts),
        surroundings=told.surroundings(facts),
        notes=list(dict.fromkeys([*facts.prepare.notes, *facts.train.notes, *facts.notes])),
    )


def _tiles(facts: RunFacts) -> list[tuple[str, str, str]]:
    found, seconds = facts.evaluation, facts.train.train_seconds
    steps = facts.train.steps
    tiles = [
        ("Loss, tuned", f"{found.tuned.loss:.3f}" if found.tuned else "–", "lower is better"),
        ("Loss, base", f"{found.base.loss:.3f}" if found.base else "–", "before training"),
        ("Held-out examples", f"{found.examples:,}", "not trained on"),
    ]
    if steps:
        took = f"{seconds:,.0f} seconds in the last attempt" if seconds else ""
        tiles.append(("Steps", f"{steps:,}", took))
    return tiles


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the comparison: what it is, how to read it, and for each model the figure and its interval."""

    name: str
    hint: str
    cells: Sequence[tuple[str, str]]


def _rows(facts: RunFacts) -> list[Row]:
    scores = [scores for _, scores in facts.models]
    rows = [_row(metric, scores) for metric in facts.metrics()]
    if any(each.request_tokens is not None for each in scores):
        tokens = [(told.tokens(each), "") for each in scores]
        rows.append(Row("tokens of a request", "read before the answer; fewer are cheaper", tokens))
    return rows


def _row(metric: Metric, scores: Sequence[Scores]) -> Row:
    name, hint = METRIC_MEANINGS[metric]
    spreads = [told.interval(each) if metric is Metric.LOSS else "" for each in scores]
    cells = [(told.figure(metric, each.value(metric)), spread) for each, spread in zip(scores, spreads, strict=True)]
    return Row(name, f"{hint}; with its 95 % interval" if any(spreads) else hint, cells)


def _checks(facts: RunFacts) -> list[dict[str, Any]]:
    wanted = {check.name: check for check in facts.config.evaluation.checks}
    return [
        {
            "report": check,
            "rule": wanted[check.score.name].model_dump(
                mode="json", by_alias=True, exclude_defaults=True, exclude={"name", "prompts"}
            ),
        }
        for check in facts.report.checks
        if check.score.name in wanted
    ]


def _charts(facts: RunFacts) -> list[Chart]:
    points = facts.training.points
    losses = {
        "training loss": [(point.step, point.loss) for point in points if point.loss is not None],
        "held-out loss": [(point.step, point.eval_loss) for point in points if point.eval_loss is not None],
    }
    rates = [(point.step, point.learning_rate) for point in points if point.learning_rate is not None]
    drawn = (
        curves(
            losses,
            title="Loss",
            summary="How wrong the guesses are, step by step; the checkpoint with the lowest held-out loss was kept.",
            x_label="optimizer step",
            y_label="nats",
        ),
        curves(
            {"learning rate": rates},
            title="Learning rate",
            summary=f"How large the steps were{_schedule(facts)}.",
            x_label="optimizer step",
            y_label="rate",
        ),
    )
    return [chart for chart in drawn if chart is not None]


def _schedule(facts: RunFacts) -> str:
    """By which rule, where that is known: a run of an earlier version names none."""
    values = facts.train.resolved or facts.prepare.resolved
    if values is None or values.schedule is None:
        return ""
    return f": {values.schedule}, after a warm-up of {values.warmup_steps:,} steps"
