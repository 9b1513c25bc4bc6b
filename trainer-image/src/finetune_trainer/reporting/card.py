"""The model card: README.md in the model's folder, with the header that Hugging Face's hub reads.

It has no text of the data, neither questions nor answers: a card travels with its model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from huggingface_hub import EvalResult, ModelCardData

from finetune_api.meanings import METRIC_MEANINGS
from finetune_api.measured import Scores
from finetune_api.tasks import TASKS, Metric, Task
from finetune_trainer.reporting import facts as told
from finetune_trainer.reporting.facts import RunFacts
from finetune_trainer.training.output import first_source

PIPELINES = {  # the hub's words
    Task.CHAT: "text-generation",
    Task.COMPLETION: "text-generation",
    Task.PREFERENCE: "text-generation",
    Task.CLASSIFICATION: "text-classification",
    Task.TOKEN_CLASSIFICATION: "token-classification",
    Task.SEQ2SEQ: "text2text-generation",
    Task.QUESTION_ANSWERING: "question-answering",
}
HUB = "hf://"


def card(facts: RunFacts) -> str:
    """The whole card."""
    config, evaluation = facts.config, facts.evaluation
    sentences = [sentence for sentence in (evaluation.certainty, evaluation.worth, evaluation.preferred) if sentence]
    parts = [
        f"---\n{_header(facts)}\n---\n",
        f"# {_cell(config.tuned_name)}\n",
        f"{_cell(config.base_name)}, fine-tuned for the task {config.task} by {config.method.type}: run {config.run} "
        f"of the FineTuneJob {config.namespace}/{config.job}. It answers at `{TASKS[config.task].route}` of an "
        "OpenAI-compatible server.\n",
        f"## Measured\n\nOn {evaluation.examples:,} held-out examples, the same for every model.\n",
        _figures(facts),
        "\n".join(sentences) + "\n",
        _checks(facts),
        _benchmarks(facts),
        "## Training\n",
        _table(told.settings(facts)),
        _curve(facts),
        "## Data\n",
        _table(told.data_figures(facts)),
        "## Lineage\n",
        _table(told.lineage(facts)),
        "## Environment\n",
        _table(told.surroundings(facts)),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _header(facts: RunFacts) -> str:
    config = facts.config
    source = first_source(config)
    adapter = facts.form == "Adapter"
    data = ModelCardData(
        base_model=source.removeprefix(HUB).partition("@")[0] if source.startswith(HUB) else None,
        base_model_relation=("adapter" if adapter else "finetune") if source.startswith(HUB) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=PIPELINES[config.task],
        tags=["finetune-operator", config.method.type.value.lower()],
        model_name=config.tuned_name,
        eval_results=_results(facts),
    )
    return data.to_yaml().strip()


def _results(facts: RunFacts) -> list[EvalResult]:
    tuned = facts.evaluation.tuned
    values = {metric: tuned.value(metric) for metric in facts.metrics()} if tuned else {}
    return [
        EvalResult(
            task_type=PIPELINES[facts.config.task],
            dataset_type="held-out",
            dataset_name="held-out examples of the job's data",
            metric_type=metric.value,
            metric_value=round(value, 6),
        )
        for metric, value in values.items()
        if value is not None
    ]


def _figures(facts: RunFacts) -> str:
    names = [name for name, _ in facts.models]
    lines = [_line(["", *names]), _line(["---"] * (len(names) + 1))]
    for metric in facts.metrics():
        cells = [told.figure(metric, scores.value(metric)) + _spread(metric, scores) for _, scores in facts.models]
        lines.append(_line([METRIC_MEANINGS[metric][0], *cells]))
    if any(scores.request_tokens is not None for _, scores in facts.models):
        lines.append(_line(["tokens of a request", *(told.tokens(scores) for _, scores in facts.models)]))
    return "\n".join(lines) + "\n"


def _spread(metric: Metric, scores: Scores) -> str:
    spread = told.interval(scores) if metric is Metric.LOSS else ""
    return f" ({spread})" if spread else ""


def _checks(facts: RunFacts) -> str:
    checks = [check for check in facts.evaluation.checks if check.asked]
    if not checks:
        return ""
    lines = ["## Behaviour\n", _line(["check", "answers", "base", "tuned"]), _line(["---"] * 4)]
    for check in checks:
        base = "–" if check.base is None else f"{check.base:.0%}"
        lines.append(_line([check.name, str(check.asked), base, f"{check.tuned:.0%}"]))
    return "\n".join(lines) + "\n"


def _benchmarks(facts: RunFacts) -> str:
    if not facts.report.benchmarks:
        return ""
    columns = ["task", "metric", "questions", "examples before each", "base", "tuned", "95 % interval of the change"]
    harness = facts.report.benchmarks[0].harness
    lines = [
        f"## Benchmarks\n\nBy {harness}: what the base could do before.\n",
        _line(columns),
        _line(["---"] * len(columns)),
    ]
    for each in facts.report.benchmarks:
        score = each.score
        figures = [f"{score.base:.4g}", f"{score.tuned:.4g}", told.change(score)]
        lines.append(_line([score.task, score.measure, str(score.questions), str(each.few_shot_examples), *figures]))
    return "\n".join(lines) + "\n"


def _curve(facts: RunFacts) -> str:
    """The held-out loss as a table: a card has no pictures of its own."""
    points = [point for point in facts.training.points if point.eval_loss is not None]
    if not points:
        return ""
    lines = [_line(["step", "held-out loss"]), _line(["---", "---"])]
    return "\n".join([*lines, *(_line([f"{point.step:,}", f"{point.eval_loss:.4f}"]) for point in points)]) + "\n"


def _table(values: Mapping[str, str]) -> str:
    if not values:
        return "Not kept.\n"
    rows = [_line([name, value]) for name, value in values.items()]
    return "\n".join([_line(["", ""]), _line(["---", "---"]), *rows]) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    """One line, in which nothing is markup: names and labels are a user's."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))
