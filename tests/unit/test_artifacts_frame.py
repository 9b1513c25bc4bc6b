"""The frame around a stage: reuse, reports, termination messages, exit codes, and secrets that stay secret."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.conditions import FailureReason, Stage
from finetune_api.job import evaluation_hash
from finetune_api.reports import EvaluateReport, Summary, parse_summary
from finetune_api.run_config import RunConfig, RunPaths
from finetune_api.spec import (
    BaseModelSpec,
    DatasetSpec,
    EvaluationSpec,
    Hyperparameters,
    MethodSpec,
    Task,
    TrainData,
)
from finetune_api.status import DatasetStatus, EvaluationStatus
from finetune_trainer import __main__ as entry
from finetune_trainer import errors, frame
from finetune_trainer.context import StageContext


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    config = RunConfig(
        namespace="team-a",
        job="travel",
        run=3,
        hash="0123456789abcdef",
        task=Task.CHAT,
        base_model=BaseModelSpec(source="pvc://models/tiny"),
        base_name="tiny",
        tuned_name="travel",
        dataset=DatasetSpec(train=TrainData(source="pvc://data/train.jsonl")),
        method=MethodSpec(),
        hyperparameters=Hyperparameters(),
        evaluation=EvaluationSpec(),
        paths=RunPaths(run="team-a/travel/runs/3-01234567", models="team-a/models"),
    )
    (tmp_path / "run.json").write_text(config.model_dump_json(by_alias=True))
    return StageContext(config=config, artifacts=tmp_path / "artifacts", sources=tmp_path / "sources")


@pytest.fixture
def stage_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[StageContext], Any]], None]:
    """Put a function in the place of Evaluate: the stage with the smallest output."""

    def install(run: Callable[[StageContext], Any]) -> None:
        module = types.ModuleType("finetune_trainer.stages.evaluate")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    handler, root = signal.getsignal(signal.SIGTERM), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    signal.signal(signal.SIGTERM, handler)
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def evaluate(context: StageContext) -> Summary:
    evaluation = EvaluationStatus(examples=4)
    path = context.evaluation_dir / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(EvaluateReport(evaluation=evaluation).model_dump_json(by_alias=True))
    return Summary(stage=Stage.EVALUATE, ok=True, evaluation=evaluation)


def run_twice(context: StageContext, log: Path, between: Callable[[], None] = lambda: None) -> list[bool]:
    """Whether each of two runs of the stage reused what was there."""
    reused = []
    for _ in range(2):
        assert frame.run_stage(Stage.EVALUATE, context, log) == 0
        summary = parse_summary(log.read_text())
        assert summary is not None
        assert (summary.ok, summary.run, summary.hash) == (True, 3, "0123456789abcdef")
        reused.append(summary.reused)
        between()
    return reused


def test_done_stage_is_not_done_again(context: StageContext, stage_module: Any, tmp_path: Path) -> None:
    stage_module(evaluate)
    assert run_twice(context, tmp_path / "log") == [False, True]


@pytest.mark.parametrize("damage", ["report", "output", "other hash", "failed"])
def test_stage_is_done_again_when_its_output_cannot_be_trusted(
    context: StageContext, stage_module: Any, tmp_path: Path, damage: str
) -> None:
    stage_module(evaluate)
    report = context.report_path(Stage.EVALUATE)

    def spoil() -> None:
        content = json.loads(report.read_text())
        if damage == "report":
            report.write_text(report.read_text()[:40])
        elif damage == "output":
            (context.evaluation_dir / "report.json").write_text("{")
        elif damage == "other hash":
            report.write_text(json.dumps({**content, "hash": "f" * 16}))
        else:
            report.write_text(json.dumps({**content, "ok": False}))

    assert run_twice(context, tmp_path / "log", spoil) == [False, False]


def told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FINETUNE_EVALUATION", text)


def evaluated(root: Path) -> Summary:
    """The Evaluate stage by its command line."""
    arguments = ["evaluate", "--config", str(root / "run.json"), "--artifacts", str(root / "artifacts")]
    assert entry.main([*arguments, "--sources", str(root), "--termination-log", str(root / "log")]) == 0
    summary = parse_summary((root / "log").read_text())
    assert summary is not None
    return summary


def test_other_settings_measure_again_and_the_same_ones_do_not(
    context: StageContext, stage_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def measure(given: StageContext) -> Summary:
        seen.append(given.config.evaluation.max_examples)
        return evaluate(given)

    stage_module(measure)
    assert not evaluated(tmp_path).reused
    told(monkeypatch, "{}")
    assert evaluated(tmp_path).reused
    told(monkeypatch, '{"maxExamples":7,"anotherVersionsField":1}')
    summary = evaluated(tmp_path)
    assert not summary.reused
    assert summary.evaluation is not None
    assert summary.evaluation.settings_hash == evaluation_hash(EvaluationSpec(max_examples=7))
    assert evaluated(tmp_path).reused
    told(monkeypatch, "{}")
    assert not evaluated(tmp_path).reused
    assert seen == [500, 7, 500]


def test_a_report_of_a_version_without_this_hash_is_by_the_settings_of_the_run(
    context: StageContext, stage_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = context.config.model_copy(update={"evaluation": EvaluationSpec(max_examples=9)})
    (tmp_path / "run.json").write_text(config.model_dump_json(by_alias=True))
    stage_module(evaluate)
    evaluated(tmp_path)
    report = context.report_path(Stage.EVALUATE)
    content = json.loads(report.read_text())
    content["evaluation"].pop("settingsHash", None)
    report.write_text(json.dumps(content))
    told(monkeypatch, '{"maxExamples":9}')
    assert evaluated(tmp_path).reused
    told(monkeypatch, "{}")
    assert not evaluated(tmp_path).reused


def test_settings_that_are_not_readable_are_named(
    tmp_path: Path, context: StageContext, stage_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, '{"maxExamples":"many"}')
    arguments = ["evaluate", "--config", str(tmp_path / "run.json"), "--termination-log", str(tmp_path / "log")]
    assert entry.main(arguments) == 10
    summary = parse_summary((tmp_path / "log").read_text())
    assert summary is not None
    assert summary.failure is not None
    assert "FINETUNE_EVALUATION" in summary.failure.message


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.UserInputError("m", advice="a"), 10, FailureReason.DATASET_INVALID),
        (errors.UserInputError("m", reason=FailureReason.MODEL_ACCESS), 10, FailureReason.MODEL_ACCESS),
        (errors.GpuOutOfMemoryError("m"), 11, FailureReason.CUDA_OUT_OF_MEMORY),
        (errors.LossNotFiniteError("m"), 12, FailureReason.LOSS_NOT_FINITE),
        (errors.ArtifactInvalidError("m"), 13, FailureReason.ARTIFACT_INVALID),
        (errors.InterruptedStageError("m"), 75, FailureReason.INTERRUPTED),
        (KeyboardInterrupt(), 75, FailureReason.INTERRUPTED),
        (errors.TrainerError("m", reason=FailureReason.SOURCE_UNAVAILABLE), 1, FailureReason.SOURCE_UNAVAILABLE),
        (OSError(errno.ENOSPC, "No space left on device"), 73, FailureReason.STORAGE_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 73, FailureReason.STORAGE_FULL),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 73, FailureReason.STORAGE_FULL),
        (MemoryError(), 1, FailureReason.OUT_OF_MEMORY),
        (ZeroDivisionError("x"), 1, FailureReason.SYSTEM_FAULT),
    ],
)
def test_every_error_has_its_exit_code_and_reason(
    context: StageContext, stage_module: Any, tmp_path: Path, error: BaseException, code: int, reason: FailureReason
) -> None:
    def fail(_context: StageContext) -> Summary:
        raise error

    stage_module(fail)
    assert frame.run_stage(Stage.EVALUATE, context, tmp_path / "log") == code
    summary = parse_summary((tmp_path / "log").read_text())
    assert summary is not None
    assert summary.failure is not None
    assert (summary.ok, summary.failure.reason, summary.run) == (False, reason, 3)
    assert not context.report_path(Stage.EVALUATE).exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_volume_that_lets_nobody_in_says_whom_it_must_let_in(number: int) -> None:
    """NFS and hostPath volumes do not obey the pod's fsGroup: what everybody meets first on a cluster of one's own."""
    failure, code = frame.explain(OSError(number, os.strerror(number), "/artifacts/team-a"))
    assert (code, failure.reason) == (1, FailureReason.SYSTEM_FAULT)
    assert "/artifacts/team-a" in failure.message
    assert f"user {os.getuid()}" in failure.advice
    assert "fsGroup" in failure.advice


def test_refused_data_reaches_the_message_with_its_problems(context: StageContext, tmp_path: Path) -> None:
    error = errors.UserInputError("line 3")
    error.dataset = DatasetStatus(duplicates=7)
    assert frame.report_failure(Stage.PREPARE, error, tmp_path / "log", context.config) == 10
    summary = parse_summary((tmp_path / "log").read_text())
    assert summary is not None
    assert summary.dataset == error.dataset


def test_secrets_reach_neither_log_nor_message(
    context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    frame.set_up_log(Stage.PREPARE, context.config)
    try:
        raise ConnectionError("GET https://hub/x?key=wJalrXUtnFEMI with Bearer hf_verysecret failed")
    except ConnectionError as error:
        frame.report_failure(Stage.PREPARE, error, tmp_path / "log", context.config)
    texts = [capsys.readouterr().err, (tmp_path / "log").read_text()]
    for text in texts:
        assert "hf_verysecret" not in text
        assert "wJalrXUtnFEMI" not in text
        assert "<HF_TOKEN>" in text
    assert "job=team-a/travel run=3 stage=Prepare reason=SystemFault" in texts[0]


def test_the_configuration_of_a_later_version_is_read(context: StageContext, tmp_path: Path) -> None:
    text = context.config.model_dump_json(by_alias=True).replace('"maxExamples"', '"later":1,"maxExamples"')
    (tmp_path / "run.json").write_text(text)
    assert frame.load_config(tmp_path / "run.json") == context.config


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, FailureReason.CONFIG_MISSING), ('{"namespace": "a"}', FailureReason.CONFIG_UNREADABLE)],
)
def test_a_configuration_that_is_missing_or_unreadable_is_named(
    tmp_path: Path, content: str | None, reason: FailureReason
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    arguments = ["prepare", "--config", str(tmp_path / "run.json"), "--termination-log", str(tmp_path / "log")]
    assert entry.main(arguments) == 10
    summary = parse_summary((tmp_path / "log").read_text())
    assert summary is not None
    assert summary.failure is not None
    assert summary.failure.reason is reason
    assert "run.json" in summary.failure.message


def test_sigterm_ends_a_stage_with_75(context: StageContext, stage_module: Any, tmp_path: Path) -> None:
    def terminated(_context: StageContext) -> Summary:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    stage_module(terminated)
    root = tmp_path
    arguments = ["evaluate", "--config", str(root / "run.json"), "--artifacts", str(root / "artifacts")]
    assert entry.main([*arguments, "--sources", str(root), "--termination-log", str(root / "log")]) == 75
