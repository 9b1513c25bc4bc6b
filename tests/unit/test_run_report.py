"""The run report and the model card: complete, harmless whatever the texts hold, and thin where little was kept."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from finetune_api.conditions import Stage
from finetune_api.cost import CostSum
from finetune_api.optimization import Schedule
from finetune_api.reports import Environment, EvaluateReport, ModelSummary, Summary, TrainingPoint
from finetune_api.run_config import RunConfig
from finetune_api.status import DatasetStatus, Estimate, LabelCount, ResolvedValues
from finetune_trainer import __main__ as entry
from finetune_trainer.context import StageContext
from finetune_trainer.reporting.details import tables
from finetune_trainer.reporting.leave import leave_report
from finetune_trainer.training.device import Device
from finetune_trainer.training.history import MOST_POINTS, environment, keep_history, points

HOSTILE = "</td><script>alert(1)</script> `x` | [a](b)\n---\n\u202egnp.exe"
CPU = Device("cpu", "float32", "cpu")
HERE = environment(CPU)
VALUES = ResolvedValues(
    epochs=1, batch_size=2, micro_batch_size=2, gradient_accumulation=1, learning_rate=2e-4, max_length=128,
    total_steps=4, warmup_steps=1, evaluation_steps=2, checkpoint_steps=2, packing=False, precision="float32",
    revision="0123456789ab",
)  # fmt: skip


def context(root: Path, **spec: Any) -> StageContext:
    config = RunConfig.model_validate(
        {
            "namespace": "team", "job": "travel", "run": 3, "hash": "0123456789abcdef", "task": "Chat",
            "baseModel": {"source": "hf://Qwen/Qwen3-0.6B"}, "baseName": "qwen3-0.6b", "tunedName": "travel",
            "dataset": {"train": {"source": "pvc://data/train.jsonl"}}, "method": {"type": "LoRA"},
            "hyperparameters": {}, "evaluation": {},
            "paths": {"run": "team/travel/runs/3-01234567", "models": "team/models"}, **spec,
        }
    )  # fmt: skip
    return StageContext(config, root, root)


def keep(found: StageContext, summary: Summary) -> None:
    path = found.report_path(summary.stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(summary.model_dump_json(by_alias=True))


def report(**more: Any) -> EvaluateReport:
    scores = {"loss": 1.5, "perplexity": 4.5, "tokenAccuracy": 0.5, "requestTokens": 30}
    evaluation = {"examples": 20, "base": {**scores, "loss": 2.0}, "tuned": scores, **more.pop("evaluation", {})}
    return EvaluateReport.model_validate({"evaluation": evaluation, **more})


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)


def test_what_a_model_writes_is_text_on_the_page_and_not_on_the_card(tmp_path: Path) -> None:
    checks = [{"name": "short", "maxWords": 9}]
    found = context(tmp_path, evaluation={"checks": checks, "gate": {"rules": [{"check": "short", "minShare": "90%"}]}})
    keep(found, Summary(stage=Stage.PREPARE, ok=True, resolved=VALUES, estimate=Estimate(), notes=[HOSTILE]))
    failure = {"prompt": HOSTILE, "answer": HOSTILE, "why": HOSTILE}
    score = {"name": "short", "asked": 4, "base": 0.0, "tuned": 0.75}
    sample = {"prompt": HOSTILE, "expected": HOSTILE, "base": HOSTILE, "tuned": HOSTILE, "tunedStopped": False}
    judged = report(evaluation={"checks": [score]}, samples=[sample], checks=[{"score": score, "failures": [failure]}])
    leave_report(found, judged, [HOSTILE], HERE)
    page = found.page_path.read_text()
    assert "script" not in Tags(page).found
    assert "U+202E" in page
    assert "The gate is not passed." in page
    assert "short: 75.0 % of 4 answers pass, at least 90 % wanted" in page
    card = found.card_path.read_text()
    assert "alert" not in card
    assert ModelCard(card).data.base_model == "Qwen/Qwen3-0.6B"
    assert "| short | 4 | 0% | 75% |" in card


def test_names_of_labels_are_no_markup_on_the_card(tmp_path: Path) -> None:
    found = context(tmp_path, task="Classification")
    data = DatasetStatus(train_examples=9, labels=[LabelCount(label="a|b\n# c `d`", count=9)])
    keep(found, Summary(stage=Stage.PREPARE, ok=True, dataset=data, resolved=VALUES))
    leave_report(found, report(evaluation={"base": None}), [], HERE)
    assert r"| labels | a\|b # c \`d\` (9) |" in found.card_path.read_text()
    assert ModelCard(found.card_path.read_text()).data.pipeline_tag == "text-classification"


def test_a_run_that_an_earlier_version_trained_has_a_report_too(tmp_path: Path) -> None:
    found = context(tmp_path)
    leave_report(found, report(), [], HERE)
    assert "No curves were kept." in found.page_path.read_text()
    assert "Not kept." in found.card_path.read_text()


def test_page_and_card_tell_what_the_training_took(tmp_path: Path) -> None:
    found = context(tmp_path)
    cost = CostSum(gpu_hours="1.52", amount="6.38", currency="EUR")
    leave_report(found, report(), [], Environment(device="GPU", precision="bfloat16", training_cost=cost))
    for text in (found.page_path.read_text(), found.card_path.read_text()):
        assert "1.52 GPU hours, 6.38 EUR" in text
    leave_report(found, report(), [], Environment(device="CPU", precision="float32"))
    assert "GPU hours" not in found.page_path.read_text() + found.card_path.read_text()


def test_lineage_has_what_a_model_can_be_traced_by(tmp_path: Path) -> None:
    found = context(tmp_path)
    keep(found, Summary(stage=Stage.PREPARE, ok=True, dataset=DatasetStatus(sha256="d" * 64), resolved=VALUES))
    model = ModelSummary(path="p", base_path="b", kind="Adapter", sha256="e" * 64)
    keep(found, Summary(stage=Stage.TRAIN, ok=True, model=model, steps=4, train_seconds=9.0))
    leave_report(found, report(evaluation={"previousRun": 2}), [], HERE)
    for text in (found.page_path.read_text(), found.card_path.read_text()):
        for part in ("hf://Qwen/Qwen3-0.6B at 0123456789ab", "d" * 64, "e" * 64, "team/travel", "0123456789abcdef"):
            assert part in text


def test_curves_are_thinned_but_for_evaluations_and_hold_only_numbers(tmp_path: Path) -> None:
    log = [{"step": step, "loss": 1.0 / step, "learning_rate": 1e-4} for step in range(1, 5001)]
    log += [{"step": step, "eval_loss": 2.0} for step in range(250, 5001, 250)]
    log += [{"step": 5000, "train_runtime": 3.0}, {"step": 3, "loss": math.nan}]
    found = points(log)
    assert MOST_POINTS <= len(found) <= MOST_POINTS + 20
    assert [point.step for point in found] == sorted({point.step for point in found})
    assert sum(point.eval_loss is not None for point in found) == 20
    assert points([{"step": 1, "loss": math.inf}]) == []
    assert points([{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 3.0}]) == [
        TrainingPoint(step=1, loss=2.0, eval_loss=3.0)
    ]
    keep_history(tmp_path / "training.json", log, CPU)
    assert "NaN" not in (tmp_path / "training.json").read_text()


@pytest.mark.parametrize("flags", [[], ["--card"]])
def test_the_image_prints_the_report_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    found = context(tmp_path)
    config = tmp_path / "run.json"
    config.write_text(found.config.model_dump_json(by_alias=True, exclude_none=True))
    words = ["report", *flags, "--config", str(config), "--artifacts", str(tmp_path)]
    assert entry.main(words) == 1
    assert "Evaluate leaves it when it is through" in capsys.readouterr().err
    leave_report(found, report(), [], HERE)
    assert entry.main(words) == 0
    path = found.card_path if flags else found.page_path
    assert capsys.readouterr().out == path.read_text()
    monkeypatch.setenv("FINETUNE_SERVED", config.read_text())  # in a server's pod, which has no run.json
    config.unlink()
    assert entry.main(words) == 0
    assert capsys.readouterr().out == path.read_text()


def test_lineage_names_every_file_of_the_training_data(tmp_path: Path) -> None:
    files = [{"source": "pvc://data/a.jsonl", "weight": 2}, {"configMapRef": {"name": "corrections", "key": "b.jsonl"}}]
    found = context(tmp_path, dataset={"train": {"files": files}, "validation": {"source": "pvc://data/held.jsonl"}})
    leave_report(found, report(), [], HERE)
    for text in (found.page_path.read_text(), found.card_path.read_text()):
        assert "pvc://data/a.jsonl (weight 2); key b.jsonl of ConfigMap corrections" in text
        assert "pvc://data/held.jsonl" in text


@pytest.mark.parametrize(
    ("schedule", "words"),
    [(Schedule.CONSTANT, "steps were: Constant, after a warm-up of 1 steps."), (None, "steps were.")],
)
def test_the_curve_of_rates_is_explained_by_the_schedule_that_was(
    tmp_path: Path, schedule: Schedule | None, words: str
) -> None:
    found = context(tmp_path)
    values = VALUES.model_copy(update={"schedule": schedule})
    keep(found, Summary(stage=Stage.TRAIN, ok=True, resolved=values, steps=4))
    keep_history(found.training_report_path, [{"step": step, "learning_rate": 1e-4} for step in range(1, 5)], CPU)
    leave_report(found, report(), [], HERE)
    assert f"How large the {words}" in found.page_path.read_text()


def test_figures_of_labels_and_what_was_taken_for_what_are_on_the_page(tmp_path: Path) -> None:
    one = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "examples": 4}
    found = context(tmp_path, task="Classification")
    details = {"labels": {HOSTILE: one, "b": {**one, "examples": 5}}, "confusion": [[1, 3], [0, 5]]}
    leave_report(found, report(details=details), [], HERE)
    page = found.page_path.read_text()
    assert "script" not in Tags(page).found
    for part in ("50.0%", "25.0%", "33.3%", "What was taken for what", "<strong>1</strong>", "<strong>5</strong>"):
        assert part in page


def test_labels_that_hold_together_have_no_table_of_confusions(tmp_path: Path) -> None:
    one = {"precision": 1.0, "recall": 1.0, "f1": 1.0, "examples": 1}
    assert [table.diagonal for table in tables({"labels": {"a": one}, "confusion": [[[1, 0], [0, 1]]]})] == [False]
    many = {str(number): one for number in range(150)}
    (labels,) = tables({"labels": many, "confusion": [[1] * 150] * 150})
    assert len(labels.rows) == 100
    assert "the first 100 of 150" in labels.caption


def test_questions_are_told_apart_by_whether_they_have_an_answer(tmp_path: Path) -> None:
    part = {"examples": 3, "exactMatch": 1 / 3, "answerF1": 0.5}
    (found,) = tables({"unanswerable": part})
    assert found.rows == [("without", ("3", "33.3%", "50.0%"))]
