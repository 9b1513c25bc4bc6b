"""The Package stage on a trained model: what lies on the claim afterwards, and what happens when something is wrong."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trained_runs import make_run, one_thread
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import Summary, parse_summary
from finetune_trainer import artifacts, frame
from finetune_trainer.context import StageContext
from finetune_trainer.packaging import comparison, merged
from finetune_trainer.packaging.tuned import open_tuned


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    context = make_run(tmp_path_factory.mktemp("trained"), resolved={"total_steps": 4, "epochs": 1})
    assert frame.run_stage(Stage.TRAIN, context, None) == 0
    return context


@pytest.fixture
def context(trained: StageContext) -> Iterator[StageContext]:
    """Without exports, before and after."""
    yield trained
    shutil.rmtree(trained.exports_dir, ignore_errors=True)


def package(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *exports: dict[str, Any]
) -> tuple[int, Summary]:
    monkeypatch.setenv("FINETUNE_PACKAGE", json.dumps({"exports": exports}))
    log = tmp_path / "termination-log"
    code = frame.run_stage(Stage.PACKAGE, context, log)
    summary = parse_summary(log.read_text())
    assert summary is not None
    return code, summary


def logits(model: Any, context: StageContext) -> torch.Tensor:
    return comparison.outputs(model, open_tuned(context).samples())[0]


@pytest.mark.parametrize(
    ("precision", "dtype", "close"),
    [("auto", torch.float32, 1e-5), ("Float32", torch.float32, 1e-5), ("BFloat16", torch.bfloat16, 0.05)],
)
def test_a_merged_model_loads_anywhere_and_answers_as_the_adapter(
    context: StageContext,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    precision: str,
    dtype: torch.dtype,
    close: float,
) -> None:
    code, summary = package(context, monkeypatch, tmp_path, {"name": "whole", "precision": precision})
    assert code == 0
    folder = context.exports_dir / "whole"
    assert summary.package is not None
    (done,) = summary.package.exports
    assert (done.name, done.digest) == ("whole", artifacts.verify(folder))
    assert done.bytes == artifacts.size_of(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == dtype
    wanted = logits(open_tuned(context).load_unmerged(torch.float32), context)
    assert comparison.difference([wanted], [logits(model.float(), context)]).largest < close
    base = logits(AutoModelForCausalLM.from_pretrained(open_tuned(context).prepared.base_dir), context)
    assert (base - wanted).abs().max() > 1e-3  # otherwise the base itself would have passed
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert not list(folder.glob("adapter*"))
    assert not list(folder.rglob("*.bin"))


def test_a_graph_and_a_small_one_say_how_far_they_are_from_pytorch(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exports = ({"name": "edge", "format": "ONNX"}, {"name": "small", "format": "QuantizedONNX"})
    code, summary = package(context, monkeypatch, tmp_path, *exports)
    assert code == 0, summary.failure
    assert summary.package is not None
    edge, small = summary.package.exports
    assert edge.difference is not None
    assert small.difference is not None
    assert edge.difference < 1e-3 < small.difference < 0.2
    assert edge.agreement == 1.0
    assert small.agreement is not None
    assert small.agreement > 0.8
    files = {path.name for path in (context.exports_dir / "small").iterdir()}
    assert files >= {"model.onnx", "config.json", "tokenizer.json", "generation_config.json", "manifest.json"}
    sizes = [(context.exports_dir / name / "model.onnx").stat().st_size for name in ("edge", "small")]
    assert sizes[1] < sizes[0]


def test_the_card_says_what_the_folder_holds_now(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head = "pipeline_tag: text-generation\nlibrary_name: peft\nbase_model_relation: adapter\n"
    context.card_path.write_text(f"---\n{head}---\n\n# travel\n\nlibrary_name: of the text\n")
    try:
        assert package(context, monkeypatch, tmp_path, {"name": "whole"})[0] == 0
    finally:
        context.card_path.unlink()
    card = (context.exports_dir / "whole" / "README.md").read_text()
    head = "pipeline_tag: text-generation\nlibrary_name: transformers\nbase_model_relation: finetune\n"
    assert card == f"---\n{head}---\n\n# travel\n\nlibrary_name: of the text\n"


def test_what_was_exported_is_found_again(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = package(context, monkeypatch, tmp_path, {"name": "whole"})
    monkeypatch.setattr(merged, "export", lambda *_: pytest.fail("made again"))
    assert package(context, monkeypatch, tmp_path, {"name": "whole"}) == first


def test_a_damaged_or_changed_export_is_made_again(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, first = package(context, monkeypatch, tmp_path, {"name": "whole"})
    (context.exports_dir / "whole" / "model.safetensors").write_bytes(b"cut")
    assert package(context, monkeypatch, tmp_path, {"name": "whole"}) == (0, first)
    artifacts.verify(context.exports_dir / "whole")
    _, other = package(context, monkeypatch, tmp_path, {"name": "whole", "precision": "BFloat16"})
    assert other.package is not None
    assert first.package is not None
    assert other.package.exports[0].digest != first.package.exports[0].digest


def test_a_killed_package_leaves_nothing_half_made(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = context.exports_dir / ".whole-01234567"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    assert package(context, monkeypatch, tmp_path, {"name": "whole"})[0] == 0
    assert sorted(path.name for path in context.exports_dir.iterdir()) == ["whole", "whole.json"]


def test_a_full_volume_is_named_and_the_other_exports_are_done(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(tuned: Any, folder: Path) -> None:
        if "BFloat16" in folder.name or folder.name.startswith(".second"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(merged, "copy_beside", full)
    code, summary = package(context, monkeypatch, tmp_path, {"name": "second"}, {"name": "third"})
    assert code == 73  # tried again
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.STORAGE_FULL
    assert summary.failure.message.startswith("export second: OSError: [Errno 28] No space left")
    assert summary.package is not None
    assert [export.name for export in summary.package.exports] == ["third"]
    assert sorted(path.name for path in context.exports_dir.iterdir()) == ["third", "third.json"]


def test_a_merge_that_answers_otherwise_is_refused(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def spoil(tuned: Any, folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
        model.save_pretrained(folder)

    monkeypatch.setattr(merged, "copy_beside", spoil)
    code, summary = package(context, monkeypatch, tmp_path, {"name": "whole"})
    assert code == 13
    assert summary.failure is not None
    assert "the outputs of the merged model differ by" in summary.failure.message
    assert not (context.exports_dir / "whole").exists()


@pytest.mark.parametrize("text", ["", "{", '{"exports": [{"name": "A b"}]}'])
def test_what_says_nothing_is_named(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.setenv("FINETUNE_PACKAGE", text)
    log = tmp_path / "log"
    code = frame.run_stage(Stage.PACKAGE, context, log)
    summary = parse_summary(log.read_text())
    assert summary is not None
    assert summary.failure is not None
    assert (code, summary.failure.reason) == (10, FailureReason.SPEC_INVALID)
    assert "FINETUNE_PACKAGE" in summary.failure.message


def test_a_damaged_model_is_not_exported(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = context.model_dir / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + b"x")
    try:
        code, summary = package(context, monkeypatch, tmp_path, {"name": "whole"})
    finally:
        weights.write_bytes(before)
    assert code == 13
    assert summary.failure is not None
    assert "was changed after it was made" in summary.failure.message
