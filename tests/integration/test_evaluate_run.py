"""Evaluate on real, tiny models; and the whole way from data to proof."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tests.tiny_models import make_tiny_chat_model
from tests.trained_runs import BASE, chats, make_run, one_thread

from finetune_api.conditions import GateVerdict, Stage
from finetune_api.gate import judge
from finetune_api.reports import EvaluateReport, Summary, TrainingReport
from finetune_api.run_config import RunConfig
from finetune_api.spec import Baseline, GateRule, MethodType, Task
from finetune_trainer import artifacts, frame
from finetune_trainer.context import StageContext
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.stages import evaluate, train
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.training.inputs import FACTS

BOTH = {"baselines": ["Base", "FewShot"], "fewShotExamples": 2}
CHECKS = [
    {"name": "speaks", "matches": "."},
    {"name": "never-a-hotel", "notContains": ["hotel"]},
    {"name": "says-the-impossible", "contains": ["\u2603"]},
    {"name": "short", "maxWords": 12, "prompts": ["Tell me about Oslo 3.", "Tell me about Rome 7."]},
]
ALL = {
    "baselines": ["FewShot", "Retrieval", "Previous"],
    "fewShotExamples": 2,
    "checks": CHECKS,
    "checkAnswers": 4,
    "judge": {"url": "http://judge/v1", "model": "judge-7b", "answers": 3},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def trained(root: Path, **settings: Any) -> tuple[StageContext, Summary, Summary]:
    context = make_run(root, **settings)
    return context, train.run(context), evaluate.run(context)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageContext, Summary, Summary]:
    return trained(tmp_path_factory.mktemp("lora"), evaluation=ALL)


def test_tuned_is_better_and_both_were_measured(lora: tuple[StageContext, Summary, Summary]) -> None:
    _, fit, summary = lora
    found = summary.evaluation
    assert found is not None
    assert found.base is not None
    assert found.tuned is not None
    assert found.few_shot is not None
    assert found.loss_difference is not None
    assert found.examples == 6
    assert found.tuned.loss < found.base.loss
    assert found.retrieval is not None
    assert len({found.few_shot.loss, found.retrieval.loss, found.base.loss, found.tuned.loss}) == 4
    assert found.base.request_tokens == found.tuned.request_tokens
    assert (found.base.request_tokens or 0) < min(
        found.few_shot.request_tokens or 0, found.retrieval.request_tokens or 0
    )
    assert found.worth is not None
    assert (found.previous, found.previous_run) == (None, None)
    assert "Previous: there is no earlier promoted run to compare with" in summary.notes
    assert found.loss_difference.low < found.base.loss - found.tuned.loss < found.loss_difference.high
    # The number that chose the checkpoint is the number that is reported.
    assert found.tuned.loss == pytest.approx(fit.eval_loss, rel=1e-6)
    rule = GateRule.model_validate({"metric": "loss", "minImprovement": "1%"})
    assert judge([rule], found).verdict is GateVerdict.PASSED


def test_the_report_shows_answers_side_by_side(lora: tuple[StageContext, Summary, Summary]) -> None:
    context, _, summary = lora
    report = EvaluateReport.model_validate_json((context.evaluation_dir / "report.json").read_bytes())
    assert report.evaluation == summary.evaluation
    asked = {e["messages"][0]["content"]: e["messages"][1]["content"] for e in chats(6, offset=100)}
    assert len(report.samples) == 2
    assert all(asked[s.prompt] == s.expected for s in report.samples)
    assert report.questions_left_out == 0
    assert not report.evaluation.says_enough
    assert summary.notes[0].startswith("only 6 held-out example(s) were measured")
    assert all(s.base != s.tuned for s in report.samples)
    assert summary.to_message()


def test_checks_are_run_on_the_answers_of_both_and_failures_are_kept(
    lora: tuple[StageContext, Summary, Summary],
) -> None:
    context, _, summary = lora
    report = EvaluateReport.model_validate_json((context.evaluation_dir / "report.json").read_bytes())
    assert summary.evaluation is not None
    assert [check.score for check in report.checks] == summary.evaluation.checks
    found = {check.score.name: check for check in report.checks}
    assert {name: check.score.asked for name, check in found.items()} == {
        "speaks": 4, "never-a-hotel": 4, "says-the-impossible": 4, "short": 2,
    }  # fmt: skip
    assert found["never-a-hotel"].score.tuned == 1
    never = found["says-the-impossible"]
    assert (never.score.base, never.score.tuned, len(never.failures), len(never.base_failures)) == (0, 0, 4, 4)
    assert never.failures[0].why == "does not contain '\u2603'"
    assert never.failures[0].answer == report.samples[0].tuned
    assert {failure.prompt for failure in found["short"].base_failures} <= set(CHECKS[3]["prompts"])
    assert len(report.samples) == 2  # as many as were asked for, whatever the checks needed
    assert [each.prompt for each in report.to_judge[:2]] == [each.prompt for each in report.samples]
    assert len(report.to_judge) == 3
    wanted = [{"check": "never-a-hotel", "minShare": "100%"}, {"check": "says-the-impossible", "minShare": "1%"}]
    verdict = judge([GateRule.model_validate(rule) for rule in wanted], summary.evaluation)
    assert verdict.verdict is GateVerdict.FAILED
    assert verdict.reasons[0].startswith("never-a-hotel: 100.0 % of 4 answers pass")


def test_a_page_and_a_card_tell_of_the_run_and_the_model_stays_what_it_was(
    lora: tuple[StageContext, Summary, Summary],
) -> None:
    context, fit, summary = lora
    page = context.page_path.read_text()
    assert summary.evaluation is not None
    assert summary.evaluation.tuned is not None
    for text in (
        f"{summary.evaluation.tuned.loss:.3f}", "Base with the nearest examples", "tokens of a request",
        "says-the-impossible", "Answers side by side", "held-out loss", "The gate is passed.", version("torch"),
    ):  # fmt: skip
        assert text in page, text
    card = ModelCard(context.card_path.read_text())
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-generation")
    (loss,) = (result.metric_value for result in card.data.eval_results or () if result.metric_type == "loss")
    assert loss == pytest.approx(summary.evaluation.tuned.loss, abs=1e-5)
    assert not any(line["messages"][1]["content"] in card.text for line in chats(6, offset=100))
    assert fit.model is not None
    assert artifacts.verify(context.model_dir) == fit.model.sha256
    curves = TrainingReport.model_validate_json(context.training_report_path.read_bytes())
    assert [point.step for point in curves.points] == list(range(1, 11))
    losses = [point.eval_loss for point in curves.points if point.eval_loss is not None]
    assert min(losses) == pytest.approx(fit.eval_loss)


def previous(context: StageContext, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """As the control plane tells of run 1."""
    told = {"run": 1, "path": f"{context.config.paths.run}/model", "basePath": BASE, **more}
    monkeypatch.setenv("FINETUNE_PREVIOUS", json.dumps(told))


def measured_against(context: StageContext, tmp_path: Path) -> Summary:
    """The model of the context, measured against whatever was named as the previous run."""
    settings = context.config.evaluation.model_copy(
        update={"baselines": [Baseline.PREVIOUS], "checks": [], "sample_answers": 0, "judge": None}
    )
    config = context.config.model_copy(update={"evaluation": settings})
    return evaluate.run(replace(context, config=config))


@pytest.mark.parametrize("claim", [None, "old"])
def test_the_previous_run_is_measured_on_the_same_examples(
    lora: tuple[StageContext, Summary, Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: str | None
) -> None:
    context, _, summary = lora
    if claim:  # the same files, mounted where another claim is
        context = replace(context, sources=tmp_path)
        (tmp_path / "pvc").mkdir()
        (tmp_path / "pvc" / claim).symlink_to(context.artifacts)
    previous(context, monkeypatch, **({"claim": claim} if claim else {}))
    found = measured_against(context, tmp_path).evaluation
    assert found is not None
    assert summary.evaluation is not None
    assert found.previous_run == 1
    assert found.previous == found.tuned == summary.evaluation.tuned


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"path": "team/travel/runs/0-gone/model"}, "is not there any more"),
        ({"basePath": "team/models/gone"}, "its base model is not there any more"),
        ({"claim": "old", "mounted": False}, "its claim old is not the run's"),
    ],
)
def test_a_previous_run_that_cannot_be_measured_is_said_and_fails_nothing(
    lora: tuple[StageContext, Summary, Summary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, Any],
    why: str,
) -> None:
    context, _, summary = lora
    previous(context, monkeypatch, **told)
    again = measured_against(context, tmp_path)
    assert again.evaluation is not None
    assert summary.evaluation is not None
    assert again.evaluation.tuned == summary.evaluation.tuned
    assert (again.evaluation.previous_run, again.evaluation.previous) == (1, None)
    assert [note for note in again.notes if note.startswith("Previous: run 1")]
    assert any(why in note for note in again.notes), again.notes


def other_labels(directory: Path) -> None:
    (directory / FACTS).write_text(Facts(labels=("good", "bad"), counts=(1, 1)).to_json())


def other_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def damaged(directory: Path) -> None:
    (directory / artifacts.MANIFEST).unlink()


@pytest.mark.parametrize(
    ("change", "finished", "why"),
    [
        (other_labels, True, "it was trained for another task, or on other labels"),
        (other_template, True, "cuts texts into other tokens, so that the losses do not compare"),
        (damaged, False, "was never finished"),
    ],
)
def test_a_previous_run_that_does_not_compare_is_said(
    lora: tuple[StageContext, Summary, Summary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    finished: bool,
    why: str,
) -> None:
    context, _, _ = lora
    other = tmp_path / "pvc" / "old" / "model"
    shutil.copytree(context.model_dir, other)
    (tmp_path / "pvc" / "old" / "base").symlink_to(context.artifacts / BASE)
    change(other)
    if finished:
        artifacts.finish(other)
    previous(context, monkeypatch, claim="old", path="model", basePath="base")
    summary = measured_against(replace(context, sources=tmp_path), tmp_path)
    assert summary.evaluation is not None
    assert summary.evaluation.previous is None
    assert any(why in note for note in summary.notes), summary.notes


def test_the_base_is_the_base_with_the_adapter_off(lora: tuple[StageContext, Summary, Summary], tmp_path: Path) -> None:
    """Measured on the same loaded weights, it equals a run whose adapter does nothing."""
    context, _, summary = lora
    path = context.model_dir / "adapter_model.safetensors"
    kept = path.read_bytes()
    manifest = (context.model_dir / artifacts.MANIFEST).read_bytes()
    save_file({name: t * 0 if "lora_B" in name else t for name, t in load_file(path).items()}, path)
    artifacts.finish(context.model_dir)
    try:
        found = evaluate.run(context).evaluation
    finally:
        path.write_bytes(kept)
        (context.model_dir / artifacts.MANIFEST).write_bytes(manifest)
    assert found is not None
    assert summary.evaluation is not None
    assert found.base == summary.evaluation.base
    assert found.tuned == found.base
    assert found.loss_difference is not None
    assert found.loss_difference.low == found.loss_difference.high == 0


@pytest.mark.parametrize(
    "settings", [{"method": MethodType.FULL}, {"task": Task.COMPLETION, "evaluation": BOTH}], ids=["full", "completion"]
)
def test_other_methods_and_tasks(tmp_path: Path, settings: dict[str, Any]) -> None:
    context, fit, summary = trained(tmp_path, **settings)
    found = summary.evaluation
    assert found is not None
    assert found.base is not None
    assert found.tuned is not None
    assert found.tuned.loss < found.base.loss
    assert found.tuned.loss == pytest.approx(fit.eval_loss, rel=1e-6)
    assert len(EvaluateReport.model_validate_json((context.evaluation_dir / "report.json").read_bytes()).samples) == 2


def test_a_base_that_is_not_finite_does_not_keep_the_tuned_model_from_being_measured(tmp_path: Path) -> None:
    context = make_run(tmp_path, method=MethodType.FULL)
    train.run(context)
    path = context.artifacts / BASE / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    summary = evaluate.run(context)
    again = Summary.model_validate_json(summary.to_message())
    assert again.evaluation is not None
    assert again.evaluation.tuned is not None
    assert (again.evaluation.base, again.evaluation.loss_difference) == (None, None)
    assert any("the base model's loss is not finite on 6 of 6" in note for note in again.notes)
    verdict = judge([GateRule.model_validate({"metric": "loss", "minImprovement": "1%"})], again.evaluation)
    assert verdict.verdict is GateVerdict.FAILED


def test_questions_at_the_end_of_the_context_are_left_out_and_said(tmp_path: Path) -> None:
    long = [{"messages": [{"role": "user", "content": "sun " * 150}, {"role": "assistant", "content": "Boats."}]}]
    context = make_run(tmp_path, validation=[*long, *chats(5, offset=100)], evaluation={"sampleAnswers": 6})
    notes = train.run(context).notes
    assert any(note.startswith("1 held-out question(s) were not asked") for note in notes)
    summary = evaluate.run(context)
    assert summary.evaluation is not None
    assert summary.evaluation.examples == 6  # measured it is
    assert any(note.startswith("1 held-out question(s) were not asked") for note in summary.notes)
    report = EvaluateReport.model_validate_json((context.evaluation_dir / "report.json").read_bytes())
    assert (len(report.samples), report.questions_left_out) == (5, 1)


@pytest.mark.parametrize(("fault", "message"), [("nan", "loss is not finite"), ("changed", "was changed")])
def test_a_damaged_model_is_not_measured(tmp_path: Path, fault: str, message: str) -> None:
    context = make_run(tmp_path, resolved={"epochs": 1})
    train.run(context)
    path = context.model_dir / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[next(name for name in tensors if "lora_B" in name)].fill_(float("nan"))
    save_file(tensors, path)
    if fault == "nan":
        artifacts.finish(context.model_dir)
    with pytest.raises(ArtifactInvalidError, match=message) as caught:
        evaluate.run(context)
    assert frame.explain(caught.value)[1] == 13
    assert not (context.evaluation_dir / "report.json").exists()


def test_from_data_to_proof_through_the_frame(tmp_path: Path) -> None:
    """Prepare, Train and Evaluate as a pod runs them; a second time finds everything done."""
    claim = tmp_path / "sources" / "pvc" / "data"
    make_tiny_chat_model(claim / "tiny")
    for name, examples in (("train", chats(24)), ("validation", chats(6, offset=100))):
        (claim / f"{name}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    config = RunConfig.model_validate(
        {
            "namespace": "team",
            "job": "travel",
            "run": 1,
            "hash": "0123456789abcdef",
            "task": "Chat",
            "baseModel": {"source": "pvc://data/tiny"},
            "baseName": "tiny",
            "tunedName": "travel",
            "dataset": {
                "train": {"source": "pvc://data/train.jsonl"},
                "validation": {"source": "pvc://data/validation.jsonl"},
            },
            "method": {"type": "LoRA", "rank": 8},
            "hyperparameters": {"epochs": 2, "batchSize": 8, "learningRateMultiplier": 20},
            "evaluation": {"sampleAnswers": 2},
            "paths": {"run": "team/travel/runs/1-01234567", "models": "team/models"},
        }
    )
    context = StageContext(config=config, artifacts=tmp_path / "artifacts", sources=tmp_path / "sources")
    message = tmp_path / "message"
    for reused in (False, True):
        for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE):
            assert frame.run_stage(stage, context, message) == 0, message.read_text()
            summary = Summary.model_validate_json(message.read_bytes())
            assert (summary.stage, summary.ok, summary.reused) == (stage, True, reused)
    assert summary.evaluation is not None
    assert summary.evaluation.tuned is not None
    assert summary.evaluation.base is not None
    assert summary.evaluation.tuned.loss < summary.evaluation.base.loss
    adapter = load_file(context.model_dir / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in adapter.values())


def test_how_many_are_measured_does_not_change_what_is_trained(
    lora: tuple[StageContext, Summary, Summary], tmp_path: Path
) -> None:
    """evaluation.maxExamples is no input of a run: the checkpoint that becomes the model must not depend on it."""
    context, fit, summary = trained(tmp_path, evaluation={"maxExamples": 2})
    assert summary.evaluation is not None
    assert summary.evaluation.examples == 2
    assert fit.eval_loss == lora[1].eval_loss
    weights = "adapter_model.safetensors"
    assert (context.model_dir / weights).read_bytes() == (lora[0].model_dir / weights).read_bytes()
