"""Train, on the CPU with a tiny model: interruption, resume, faults, and what is left behind."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.disturbed_runs import assert_same_weights, inject, progress, stop_at, weights
from tests.trained_runs import BASE, make_run, one_thread

from finetune_api.conditions import Stage
from finetune_api.reports import Summary
from finetune_api.spec import MethodType, Task
from finetune_trainer import artifacts, frame
from finetune_trainer.context import StageContext
from finetune_trainer.errors import (
    ArtifactInvalidError,
    GpuOutOfMemoryError,
    InterruptedStageError,
    LossNotFiniteError,
)
from finetune_trainer.stages import serve, train
from finetune_trainer.training import checkpoints
from finetune_trainer.training.sft import SftTrainer
from finetune_trainer.training.stopping import StopRequest

REPOSITORY = Path(__file__).parents[2]
SOURCES = [str(REPOSITORY / part) for part in ("api/src", "trainer-image/src")]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageContext, Summary]:
    """A whole training without disturbance: what every disturbed one must equal."""
    context = make_run(tmp_path_factory.mktemp("uninterrupted"))
    return context, train.run(context)


def test_what_a_training_leaves(uninterrupted: tuple[StageContext, Summary]) -> None:
    context, summary = uninterrupted
    assert summary.model is not None
    assert summary.model.path == "team/travel/runs/1-01234567/model"
    assert summary.model.base_path == BASE
    assert summary.model.sha256 == artifacts.verify(context.model_dir)
    assert summary.steps == 10
    assert summary.resumed_from_step is None
    names = {path.name for path in context.model_dir.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in names)  # no pickles leave the trainer
    base_template = (context.artifacts / BASE / "chat_template.jinja").read_text()
    assert (context.model_dir / "chat_template.jinja").read_text() == base_template
    settings = json.loads((context.model_dir / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "tiny"
    assert settings["r"] == 4
    layers = {name.rpartition(".")[2] for name in settings["target_modules"]}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    done = progress(context)
    assert (done.percent, done.step, done.total_steps, done.checkpoint_step) == (100, 10, 10, 10)
    assert done.eval_loss is not None
    assert summary.resolved is not None
    assert summary.resolved.precision == "float32"
    assert summary.to_message()  # fits and serialises


def test_the_server_is_told_where_all_is(uninterrupted: tuple[StageContext, Summary]) -> None:
    context, _ = uninterrupted
    config = serve.server_config(context, "127.0.0.1", 8000)
    assert (config.base_name, config.tuned_name, config.run) == ("tiny", "travel", 1)
    assert (config.adapter_dir, config.tuned_dir) == (context.model_dir, None)
    assert config.base_dir == context.artifacts / BASE
    assert config.dtype == "float32"  # as it was trained


def test_the_best_checkpoint_becomes_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations that get worse after step 3: the model is that of step 3, and it survived the rotation."""
    context = make_run(tmp_path)
    monkeypatch.setattr(SftTrainer, "evaluate", _worse_and_worse)
    summary = train.run(context)
    assert summary.checkpoint is not None
    assert (summary.steps, summary.checkpoint.step, summary.eval_loss) == (10, 3, 3.0)
    assert_same_weights(context.model_dir, context.checkpoints_dir / "checkpoint-3")
    assert [step for step, _ in checkpoints.folders(context.checkpoints_dir)] == [10, 8, 3]


def _worse_and_worse(self: SftTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
    metrics = {"eval_loss": float(self.state.global_step)}
    self.log(metrics)
    self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
    return metrics


@pytest.mark.parametrize("step", [1, 4, 5])  # in the first epoch, at its last step, and at its border
def test_a_resumed_run_ends_with_the_same_weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    uninterrupted: tuple[StageContext, Summary],
    step: int,
) -> None:
    context = make_run(tmp_path)
    with monkeypatch.context() as patch:
        inject(patch, stop_at(step))
        with pytest.raises(InterruptedStageError, match=rf"checkpoint saved at step {step + 1} of 10") as caught:
            train.run(context)
    assert progress(context).checkpoint_step == step + 1
    frame.report_failure(Stage.TRAIN, caught.value, tmp_path / "words", context.config)
    last = Summary.model_validate_json((tmp_path / "words").read_bytes())
    assert last.checkpoint is not None
    assert last.checkpoint.step == step + 1
    assert last.stop_costs is not None
    assert min(last.stop_costs.step_seconds or 0, last.stop_costs.save_seconds or 0) > 0
    assert not context.model_dir.exists()
    with caplog.at_level(logging.INFO):
        summary = train.run(context)
    assert summary.resumed_from_step == step + 1
    assert summary.stop_costs is not None
    assert summary.stop_costs.lost_steps == 0
    assert f"resuming from checkpoint step {step + 1} of 10" in caplog.text
    assert f"resumed_from_step={step + 1}" in caplog.text
    assert progress(context).attempt_first_step == step + 1
    assert_same_weights(context.model_dir, uninterrupted[0].model_dir)
    assert summary.eval_loss == uninterrupted[1].eval_loss


def test_dropout_goes_on_with_the_same_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, context = make_run(tmp_path / "a", dropout="0.3"), make_run(tmp_path / "b", dropout="0.3")
    train.run(reference)
    with monkeypatch.context() as patch:
        inject(patch, stop_at(6))
        with pytest.raises(InterruptedStageError):
            train.run(context)
    train.run(context)
    assert_same_weights(context.model_dir, reference.model_dir)


def test_damaged_checkpoints_are_passed_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    uninterrupted: tuple[StageContext, Summary],
) -> None:
    context = make_run(tmp_path)
    with monkeypatch.context() as patch:
        inject(patch, stop_at(6))
        with pytest.raises(InterruptedStageError):
            train.run(context)
    (context.checkpoints_dir / "checkpoint-7" / artifacts.MANIFEST).unlink()
    (context.checkpoints_dir / "checkpoint-6" / "optimizer.pt").write_bytes(b"not what was written")
    saved = make_run_copy(context, "checkpoint-2", steps_before=2, monkeypatch=monkeypatch, root=tmp_path / "other")
    summary = train.run(context)
    assert summary.resumed_from_step == saved
    assert summary.stop_costs is not None
    assert summary.stop_costs.lost_steps == 7 - saved  # trained again, for want of a sound checkpoint
    assert "passing over checkpoint-7: it was never finished" in caplog.text
    assert "passing over checkpoint-6:" in caplog.text
    assert_same_weights(context.model_dir, uninterrupted[0].model_dir)


def make_run_copy(
    context: StageContext, name: str, *, steps_before: int, monkeypatch: pytest.MonkeyPatch, root: Path
) -> int:
    """Put an early sound checkpoint, made by a run of its own, beside the damaged ones; return its step."""
    other = make_run(root)
    with monkeypatch.context() as patch:
        inject(patch, stop_at(steps_before - 1))
        with pytest.raises(InterruptedStageError):
            train.run(other)
    (other.checkpoints_dir / name).rename(context.checkpoints_dir / name)
    return steps_before


def test_out_of_memory_is_answered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[StageContext, Summary]
) -> None:
    context = make_run(tmp_path)

    def too_much(trainer: SftTrainer) -> None:
        if trainer.state.global_step == 4 and trainer.args.per_device_train_batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    inject(monkeypatch, too_much)
    summary = train.run(context)
    assert "went on with 2 and 2 passes a step" in summary.notes[0]
    assert summary.resumed_from_step == 4  # from the last checkpoint, not from the start
    for name, tensor in weights(context.model_dir).items():  # same batches, another order of summation
        torch.testing.assert_close(tensor, weights(uninterrupted[0].model_dir)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("micro", "message"), [(4, "with 2 examples"), (1, "with 1 examples")])
def test_out_of_memory_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int, message: str) -> None:
    context = make_run(tmp_path, resolved={"micro_batch_size": micro, "gradient_accumulation": 4 // micro})

    def too_much(trainer: SftTrainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand a long table")

    inject(monkeypatch, too_much)
    with pytest.raises(GpuOutOfMemoryError, match=message) as caught:
        train.run(context)
    assert "maxLength" in caught.value.advice
    assert "long table" not in caught.value.message
    assert frame.explain(caught.value)[1] == 11


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    context = make_run(tmp_path)
    folder = context.artifacts / BASE
    poisoned = load_file(folder / "model.safetensors")
    poisoned["model.norm.weight"][0] = float("nan")
    save_file(poisoned, folder / "model.safetensors", metadata={"format": "pt"})
    artifacts.finish(folder)
    with pytest.raises(LossNotFiniteError, match="loss is nan at step 1") as caught:
        train.run(context)
    assert frame.explain(caught.value)[1] == 12
    assert checkpoints.newest(context.checkpoints_dir) is None  # nothing ruined was saved


def test_a_gradient_that_explodes_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_run(tmp_path, resolved={"checkpoint_steps": 1})

    def explode(trainer: SftTrainer) -> None:
        if trainer.state.global_step == 3:
            next(p for p in trainer.model.parameters() if p.requires_grad).grad[...] = float("inf")

    stock = SftTrainer.training_step

    def training_step(self: SftTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = stock(self, *args, **kwargs)
        explode(self)
        return loss

    monkeypatch.setattr(SftTrainer, "training_step", training_step)
    with pytest.raises(LossNotFiniteError, match=r"grad_norm is .* at step 4"):
        train.run(context)
    newest = checkpoints.newest(context.checkpoints_dir)
    assert newest is not None
    assert newest.step == 3


def test_an_adapter_that_did_not_learn_is_refused(tmp_path: Path) -> None:
    context = make_run(tmp_path, resolved={"learning_rate": 0.0})
    with pytest.raises(ArtifactInvalidError, match="every B matrix is zero"):
        train.run(context)
    assert not artifacts.is_complete(context.model_dir)


def test_completion(tmp_path: Path) -> None:
    summary = train.run(make_run(tmp_path, task=Task.COMPLETION))
    assert summary.steps == 10
    assert summary.model is not None
    assert summary.model.kind == "Adapter"


def test_full_training_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = make_run(tmp_path / "a", method=MethodType.FULL)
    train.run(reference)
    context = make_run(tmp_path / "b", method=MethodType.FULL)
    with monkeypatch.context() as patch:
        inject(patch, stop_at(5))
        with pytest.raises(InterruptedStageError):
            train.run(context)
    summary = train.run(context)
    assert summary.model is not None
    assert summary.model.kind == "Model"
    assert summary.resumed_from_step == 6
    assert_same_weights(context.model_dir, reference.model_dir)
    config = serve.server_config(context, "127.0.0.1", 8000)
    assert (config.adapter_dir, config.tuned_dir) == (None, context.model_dir)


def test_done_but_not_yet_verified(tmp_path: Path, uninterrupted: tuple[StageContext, Summary]) -> None:
    """Killed after the last step: the next attempt trains nothing more and finishes the model."""
    context = make_run(tmp_path)
    train.run(context)
    (context.model_dir / artifacts.MANIFEST).unlink()
    summary = train.run(context)
    assert (summary.resumed_from_step, summary.steps) == (10, 10)
    assert summary.train_loss == uninterrupted[1].train_loss
    assert_same_weights(context.model_dir, uninterrupted[0].model_dir)


def test_a_stop_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_run(tmp_path)
    monkeypatch.setattr(StopRequest, "asked", lambda _self: True)
    with pytest.raises(InterruptedStageError, match="nothing new to save"):
        train.run(context)


@pytest.mark.parametrize("damage", ["report", "dataset", "base"])
def test_what_prepare_left_was_changed(tmp_path: Path, damage: str) -> None:
    context = make_run(tmp_path)
    path = {
        "report": context.report_path(Stage.PREPARE),
        "dataset": context.dataset_dir / "train.jsonl",
        "base": context.artifacts / BASE / "model.safetensors",
    }[damage]
    path.write_text("{}")
    with pytest.raises(ArtifactInvalidError, match=path.name):
        train.run(context)


class TestProcess:
    """The real entry point in a process of its own, with a real signal."""

    def test_sigterm_then_again(self, tmp_path: Path) -> None:
        reference = make_run(tmp_path / "reference", resolved={"epochs": 12, "checkpoint_steps": 50})
        train.run(reference)
        context = make_run(tmp_path / "run", resolved={"epochs": 12, "checkpoint_steps": 50})
        process = self.start(context, tmp_path)
        self.wait_for_step(context, process, 3)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=120)
        assert process.returncode == 75, log
        failure = Summary.model_validate_json((tmp_path / "message").read_bytes()).failure
        assert failure is not None
        assert failure.reason == "Interrupted"
        saved = progress(context).checkpoint_step
        assert saved is not None
        assert 3 <= saved < 60
        assert f"step {saved} of 60" in failure.message
        again = self.start(context, tmp_path, PYTHONPROFILEIMPORTTIME="1")
        _, log = again.communicate(timeout=300)
        assert again.returncode == 0, log
        assert f"resumed_from_step={saved}" in log
        # By their parts: of a library that is not there, the attempt alone is told.
        imported = set(re.findall(r"^import time:.* (\w+)\.[\w.]+$", log, re.MULTILINE))
        assert "trl" in imported
        assert not imported & {"wandb", "mlflow", "deepspeed", "bitsandbytes"}, "seconds for nothing at every start"
        summary = Summary.model_validate_json((tmp_path / "message").read_bytes())
        assert summary.ok
        assert summary.resumed_from_step == saved
        assert_same_weights(context.model_dir, reference.model_dir)

    def start(self, context: StageContext, folder: Path, **variables: str) -> subprocess.Popen[str]:
        (folder / "run.json").write_text(context.config.model_dump_json(by_alias=True))
        options = {"config": folder / "run.json", "artifacts": context.artifacts, "sources": context.sources}
        options["termination-log"] = folder / "message"
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer", "train", *flags],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), **variables},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for_step(self, context: StageContext, process: subprocess.Popen[str], step: int) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and process.poll() is None:
            if context.progress_path.exists() and progress(context).step >= step:
                return
            time.sleep(0.02)
        pytest.fail(f"step {step} was not reached (exit code {process.poll()})")
