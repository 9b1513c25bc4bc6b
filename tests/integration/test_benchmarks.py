"""lm-eval's tasks by their names: Prepare fetches their data from a hub, Evaluate does them without one."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
from rich.console import Console
from tests.hub_mirror import COMMIT, Mirror, Repository, serving
from tests.tiny_benchmarks import arc_easy, gsm8k, lambada
from tests.trained_runs import BASE, make_run, one_thread
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.conditions import GateVerdict
from finetune_api.gate import judge
from finetune_api.reports import EvaluateReport, Summary
from finetune_api.run_config import RunConfig, SourcePolicy
from finetune_api.spec import GateRule
from finetune_operator.cli.report import show_scores
from finetune_trainer import artifacts
from finetune_trainer.benchmarks.data import fetch_benchmarks
from finetune_trainer.context import StageContext
from finetune_trainer.errors import TrainerError, UserInputError
from finetune_trainer.stages import evaluate, train

BENCHMARKS = [
    {"task": "arc_easy", "limit": 5, "metric": "acc_norm"},
    {"task": "gsm8k", "limit": 2, "fewShotExamples": 1, "metric": "exact_match,flexible-extract"},
    {"task": "lambada_openai", "limit": 4},
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    repositories = {
        "datasets/allenai/ai2_arc": arc_easy(),
        "datasets/openai/gsm8k": gsm8k(),
        "datasets/EleutherAI/lambada_openai": lambada(),
        "datasets/allenai/sciq": Repository({"README.md": b"# empty"}),
        "datasets/Rowan/hellaswag": Repository({"hellaswag.py": b"raise SystemExit(3)"}),
        "datasets/allenai/winogrande": Repository({}, closed="GatedRepo"),
        "datasets/allenai/openbookqa": gsm8k(),  # of other parts than the task reads
        "datasets/aps/super_glue": arc_easy(name="copa"),  # of another form
    }
    with serving(Mirror(repositories)) as mirror, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", mirror.url)
        patch.setattr(datasets.config, "HF_ENDPOINT", mirror.url)  # a pod has it in its environment from the start
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("HF_TOKEN", raising=False)
        yield mirror


def fetch(context: StageContext) -> None:
    fetch_benchmarks(context, context.run_dir / ".scratch")


@pytest.fixture(scope="module")
def measured(hub: Mirror, tmp_path_factory: pytest.TempPathFactory) -> tuple[StageContext, Summary]:
    context = make_run(tmp_path_factory.mktemp("measured"), evaluation={"benchmarks": BENCHMARKS})
    fetch(context)
    train.run(context)
    asked = len(hub.asked)
    summary = evaluate.run(context)
    assert len(hub.asked) == asked
    return context, summary


def test_base_and_tuned_do_each_benchmark(measured: tuple[StageContext, Summary]) -> None:
    _, summary = measured
    assert summary.evaluation is not None
    found = {score.task: score for score in summary.evaluation.benchmarks}
    assert {task: (score.metric, score.questions) for task, score in found.items()} == {
        "arc_easy": ("acc_norm", 5),
        "gsm8k": ("exact_match,flexible-extract", 2),
        "lambada_openai": ("perplexity", 4),
    }
    arc, words = found["arc_easy"], found["lambada_openai"]
    assert arc.difference is not None
    assert arc.difference.low <= arc.tuned - arc.base <= arc.difference.high
    assert words.lower_is_better
    assert words.difference is None  # no mean of questions
    assert words.base != words.tuned
    assert not summary.notes or "benchmark" not in " ".join(summary.notes)


def test_the_report_has_all_metrics_and_where_the_data_is_from(measured: tuple[StageContext, Summary]) -> None:
    context, _ = measured
    report = EvaluateReport.model_validate_json((context.evaluation_dir / "report.json").read_bytes())
    arc, gsm, words = report.benchmarks
    assert set(arc.tuned) == {"acc", "acc_norm"}
    assert set(gsm.base) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert set(words.base) == {"perplexity", "acc"}
    assert (arc.few_shot_examples, gsm.few_shot_examples) == (0, 1)
    assert arc.source == f"hf://allenai/ai2_arc@{COMMIT[:12]}"
    assert arc.harness.startswith("lm-eval 0.4.")


def test_figures_are_lm_evals_own(measured: tuple[StageContext, Summary]) -> None:
    """The base, measured by the library's own way on the same data."""
    import lm_eval.tasks.lambada
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    context, summary = measured
    base = context.artifacts / BASE
    lm = HFLM(AutoModelForCausalLM.from_pretrained(base), tokenizer=AutoTokenizer.from_pretrained(base), batch_size=1)
    data = datasets.load_from_disk(str(context.benchmarks_dir / "lambada_openai" / "data"))
    manager = TaskManager(include_defaults=False, include_path=list(lm_eval.tasks.lambada.__path__))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda **_: data)
        found = simple_evaluate(lm, tasks=["lambada_openai"], limit=4, bootstrap_iters=0, task_manager=manager)
    assert summary.evaluation is not None
    words = summary.evaluation.benchmarks[2]
    assert words.base == pytest.approx(found["results"]["lambada_openai"]["perplexity,none"], rel=1e-4)


def test_people_are_shown_them(measured: tuple[StageContext, Summary]) -> None:
    context, summary = measured
    page, card = context.page_path.read_text(), context.card_path.read_text()
    for text in (page, card):
        assert "lm-eval 0.4." in text
        assert "arc_easy" in text.replace("\\", "")
        assert "lower is better" in text
    assert f"hf://allenai/ai2_arc@{COMMIT[:12]}" in page
    assert summary.evaluation is not None
    shown = io.StringIO()
    show_scores(Console(file=shown, width=200), summary.evaluation)
    line = next(line for line in shown.getvalue().splitlines() if "gsm8k" in line)
    assert "exact_match,flexible-extract" in line


def test_a_gate_rule_is_judged_by_them(measured: tuple[StageContext, Summary]) -> None:
    _, summary = measured
    assert summary.evaluation is not None
    rules = [{"benchmark": "lambada_openai", "min": "0"}, {"benchmark": "arc_easy", "maxDrop": "100%"}]
    assert judge([GateRule.model_validate(rule) for rule in rules], summary.evaluation).verdict is GateVerdict.PASSED


def test_a_benchmark_that_cannot_be_measured_is_a_note_and_fails_nothing(
    measured: tuple[StageContext, Summary], tmp_path: Path
) -> None:
    """One was named after Prepare, the data of one was changed, of one the metric is wanted by another name."""
    context, _ = measured
    shutil.copytree(context.artifacts, tmp_path, dirs_exist_ok=True)
    wanted = [{"task": "piqa"}, {"task": "arc_easy"}, {"task": "lambada_openai", "limit": 1, "metric": "f1"}]
    config = context.config.to_wire() | {"evaluation": {"maxExamples": 6, "sampleAnswers": 0, "benchmarks": wanted}}
    later = replace(context, artifacts=tmp_path, config=RunConfig.model_validate(config))
    (later.benchmarks_dir / "arc_easy" / "source.json").write_text("{}")
    summary = evaluate.run(later)
    assert summary.evaluation is not None
    assert summary.evaluation.benchmarks == []
    notes = [note for note in summary.notes if note.startswith("benchmark ")]
    assert notes[0] == (
        "benchmark piqa: not measured: its data is not there: it is fetched when a run is prepared; a new rerunToken "
        "starts one"
    )
    assert notes[1].endswith("source.json was changed after it was made")
    assert notes[2] == "benchmark lambada_openai: not measured: it has no metric f1, but perplexity, acc"


REFUSED = {
    "arc_esay": ("SpecInvalid", "lm-eval has no such task", "perhaps arc_easy"),
    "mmlu": ("SpecInvalid", "it is a group of tasks", "name those of its tasks"),
    "squadv2": ("SpecInvalid", "it fetches its data by code of its own", "remove it"),
    "humaneval": ("SpecInvalid", "it runs what the model writes as a program", "remove it"),
    "ifeval": ("SpecInvalid", "it needs a package that is not in the image: No module named", "remove it"),
    "meddialog_qsumm": ("SpecInvalid", "its code fetches data or programs by itself", "remove it"),
    "sciq": ("SourceUnavailable", "cannot be read", "give the mirror the repository as the hub has it"),
    "hellaswag": ("SourceUnavailable", "Dataset scripts are no longer supported", "give the mirror"),
    "winogrande": ("SourceUnavailable", "is gated", "accept its terms"),
    "piqa": ("SourceUnavailable", "hf://baber/piqa was not found", "correct the name"),
    "openbookqa": ("SourceUnavailable", "its data has no part validation, but train, test", "give the mirror"),
    "copa": (
        "SourceUnavailable",
        "lm-eval cannot make its questions of hf://aps/super_glue@",
        "give the mir",
    ),
}


@pytest.mark.parametrize("task", REFUSED)
def test_what_cannot_be_measured_is_refused_before_a_gpu_is_asked_for(hub: Mirror, tmp_path: Path, task: str) -> None:
    reason, message, advice = REFUSED[task]
    context = make_run(tmp_path, evaluation={"benchmarks": [{"task": task}]})
    with pytest.raises(UserInputError) as caught:
        fetch(context)
    assert caught.value.reason == reason
    assert message in caught.value.message
    assert advice in caught.value.advice
    assert not [path for path in context.run_dir.glob("benchmarks/*") if not path.name.startswith(".")]


def test_a_metric_that_a_task_does_not_have_is_refused(hub: Mirror, tmp_path: Path) -> None:
    context = make_run(tmp_path, evaluation={"benchmarks": [{"task": "arc_easy", "metric": "f1"}]})
    with pytest.raises(UserInputError, match="arc_easy: it has no metric f1, but acc, acc_norm"):
        fetch(context)


def test_data_above_the_platforms_limit_is_not_fetched(hub: Mirror, tmp_path: Path) -> None:
    context = make_run(tmp_path, evaluation={"benchmarks": [{"task": "arc_easy"}]})
    small = context.config.model_copy(update={"policy": SourcePolicy(max_bytes=100)})
    before = len(hub.asked)
    with pytest.raises(UserInputError, match="and 100 are allowed for a file"):
        fetch(replace(context, config=small))
    assert not [path for path in hub.asked[before:] if path.endswith(".parquet")]


def test_a_hub_that_is_away_is_tried_again(hub: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_run(tmp_path, evaluation={"benchmarks": [{"task": "arc_easy"}]})
    monkeypatch.setattr(hub, "down", True)
    with pytest.raises(TrainerError) as caught:
        fetch(context)
    assert not isinstance(caught.value, UserInputError)
    assert caught.value.reason == "SourceUnavailable"


def test_a_hub_that_fails_in_the_middle_is_tried_again(
    hub: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is downloaded already stays in the library's cache: here there is none of it."""
    context = make_run(tmp_path, evaluation={"benchmarks": [{"task": "arc_easy"}]})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library waits before it asks again
    answer = Mirror.answer

    def failing(self: Mirror, path: str, token: str) -> Any:
        return (500, {}, b"") if path.endswith(".parquet") else answer(self, path, token)

    monkeypatch.setattr(Mirror, "answer", failing)
    with pytest.raises(TrainerError, match="could not be fetched") as caught:
        fetch(context)
    assert not isinstance(caught.value, UserInputError)
    assert "see that the hub can be reached" in caught.value.advice


def test_what_was_fetched_is_not_fetched_again_and_what_was_cut_short_is(hub: Mirror, tmp_path: Path) -> None:
    wanted = [{"task": "arc_easy"}, {"task": "lambada_openai"}]
    context = make_run(tmp_path, evaluation={"benchmarks": wanted})
    fetch(context)
    (context.benchmarks_dir / "lambada_openai" / artifacts.MANIFEST).unlink()
    before = len(hub.asked)
    fetch(context)
    assert {"/".join(path.split("/")[3:5]).partition("?")[0] for path in hub.asked[before:] if "api/d" in path} == {
        "EleutherAI/lambada_openai"
    }
    artifacts.verify(context.benchmarks_dir / "lambada_openai")
