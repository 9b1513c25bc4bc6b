"""Chat by every method, through the real stages to a served answer, and what a stop and a bad setting do to each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from tests.cells import Cell, run_cell, wait_ready
from tests.prepared_runs import Laptop, lines
from tests.tiny_models import make_tiny_chat_model
from tests.trained_runs import BASE, chats, make_run, one_thread
from transformers import AutoModelForCausalLM

from finetune_api.conditions import ExitCode, FailureReason
from finetune_api.spec import MethodSpec, MethodType, Task
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.errors import InterruptedStageError, UserInputError
from finetune_trainer.serving.app import create_app
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.stages import serve, train
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.tasks.table import KINDS
from finetune_trainer.training.device import Device
from finetune_trainer.training.fit import build_model
from finetune_trainer.training.inputs import load_prepared
from finetune_trainer.training.sft import SftTrainer
from finetune_trainer.verification import load_tuned

ADAPTERS = [MethodType.LORA, MethodType.QLORA, MethodType.DORA]
CPU = Device("cpu", "float32", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_tiny_chat_model(root / "tiny")
    return root


@contextmanager
def served(cell: Cell) -> Iterator[openai.OpenAI]:
    config = serve.server_config(cell.context, "127.0.0.1", 8000)
    engine = Engine(config, Metrics())
    with TestClient(create_app(config, engine), base_url="http://server") as http:
        wait_ready(http, engine)
        yield openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http, max_retries=0)


@pytest.mark.parametrize("method", list(MethodType))
def test_chat_is_trained_evaluated_and_served(method: MethodType, models: Path, tmp_path: Path) -> None:
    rate = 5e-3 if method is MethodType.FULL else 1e-2
    cell = run_cell(tmp_path, models, Task.CHAT, method, chats(48), chats(12, 100), epochs=8, rate=rate)
    whole = method in (MethodType.FULL, MethodType.DORA)  # vLLM takes no DoRA adapter
    assert cell.trained.model is not None
    assert cell.trained.model.kind == ("Model" if whole else "Adapter")
    assert (cell.context.model_dir / "adapter_config.json").exists() is not whole
    assert cell.value("tuned", "loss") < cell.value("base", "loss") / 2
    assert cell.value("tuned", "tokenAccuracy") > cell.value("base", "tokenAccuracy")
    difference = cell.report.evaluation.loss_difference
    assert difference is not None
    assert difference.low > 0
    sample = cell.report.samples[0]
    assert sample.tuned != sample.base
    question: Any = [{"role": "user", "content": cell_question(cell)}]
    with served(cell) as client:
        for model, said in (("travel", sample.tuned), ("tiny", sample.base)):
            answer = client.chat.completions.create(model=model, messages=question, max_tokens=128, temperature=0)
            # The server keeps back the half of a letter at the limit.
            assert str(answer.choices[0].message.content).strip().rstrip("�") == said.strip().rstrip("�"), model


def cell_question(cell: Cell) -> str:
    """What the first sample answers to."""
    expected = cell.report.samples[0].expected
    found = [row["messages"] for row in chats(12, 100) if row["messages"][-1]["content"] == expected]
    return str(found[0][0]["content"])


@pytest.mark.parametrize("method", ADAPTERS)
def test_settings_of_the_adapter_reach_it(method: MethodType, tmp_path: Path) -> None:
    context = make_run(tmp_path, resolved={"lora_rank": 6, "lora_alpha": 9})
    more = {} if method is MethodType.DORA else {"initialization": "orthogonal"}
    spec = MethodSpec(type=method, rs_lora=True, target_modules=["q_proj", "up_proj"], dropout="0.2", **more)
    model = built(context, spec)
    settings = model.peft_config["default"]
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    assert layer.scaling["default"] == pytest.approx(9 / 6**0.5)
    assert settings.target_modules == {"q_proj", "up_proj"}
    assert settings.use_dora is (method is MethodType.DORA)
    assert settings.lora_dropout == 0.2
    assert settings.init_lora_weights == ("orthogonal" if more else True)
    assert layer.get_base_layer().weight.dtype == (torch.uint8 if method is MethodType.QLORA else torch.float32)


def built(context: StageContext, spec: MethodSpec) -> Any:
    context = replace(context, config=context.config.model_copy(update={"method": spec}))
    prepared = load_prepared(context)
    return build_model(context, prepared, prepared.resolved, CPU)


@pytest.mark.parametrize("method", [MethodType.QLORA, MethodType.DORA])
def test_a_resumed_run_ends_with_the_same_weights(
    method: MethodType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After evaluations too: they must leave a quantised base as it was."""
    whole = make_run(tmp_path / "whole", method=method)
    train.run(whole)
    context = make_run(tmp_path / "stopped", method=method)
    stock = SftTrainer.training_step

    def training_step(self: SftTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(self, *args, **kwargs)

    with monkeypatch.context() as fault:
        fault.setattr(SftTrainer, "training_step", training_step)
        with pytest.raises(InterruptedStageError):
            train.run(context)
    summary = train.run(context)
    assert summary.resumed_from_step == 5
    first, second = (load_file(next(each.model_dir.glob("*.safetensors"))) for each in (whole, context))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_dora_keeps_what_it_trained_in_the_checkpoint(tmp_path: Path) -> None:
    """Merged, the model answers as the adapter in the best checkpoint does on the base."""
    context = make_run(tmp_path, method=MethodType.DORA)
    summary = train.run(context)
    assert summary.checkpoint is not None
    adapter = context.checkpoints_dir / f"checkpoint-{summary.checkpoint.step}"
    merged = AutoModelForCausalLM.from_pretrained(context.model_dir).eval()
    prepared = load_prepared(context)
    tuned = load_tuned(adapter, prepared.base_dir, CPU, KINDS[Task.CHAT], Facts(), "Adapter")
    ids = torch.arange(40, 72).reshape(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, tuned(ids).logits, atol=1e-4, rtol=1e-4)


def test_an_odd_rank_has_no_orthogonal_start(models: Path, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "run", models)
    context = laptop.context(laptop.put("train.jsonl", lines(chats(20))))
    spec = MethodSpec(rank=5, initialization="orthogonal")
    code, summary = laptop.prepare(replace(context, config=context.config.model_copy(update={"method": spec})))
    assert code == ExitCode.USER_INPUT
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.SPEC_INVALID
    assert "method.initialization: orthogonal needs an even rank" in summary.failure.message


@pytest.mark.parametrize("method", list(MethodType))
def test_a_base_without_an_output_layer_is_refused(method: MethodType, tmp_path: Path) -> None:
    """An embedding model loads as a language model, with a random output layer and a line in the log."""
    context = make_run(tmp_path, method=method, base={"tie_word_embeddings": False})
    base_dir = context.artifacts / BASE
    weights = base_dir / "model.safetensors"
    save_file({name: t for name, t in load_file(weights).items() if "lm_head" not in name}, weights, {"format": "pt"})
    artifacts.finish(base_dir)
    with pytest.raises(UserInputError, match="no weights for lm_head") as caught:
        train.run(context)
    assert caught.value.reason is FailureReason.MODEL_INVALID


@pytest.mark.parametrize("method", list(MethodType))
def test_what_prepare_counts_is_what_train_trains(method: MethodType, models: Path, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "run", models)
    context = laptop.context(laptop.put("train.jsonl", lines(chats(20))))
    spec = MethodSpec(type=method, rank=6 if method.adapter else None)
    context = replace(context, config=context.config.model_copy(update={"method": spec}))
    code, summary = laptop.prepare(context)
    assert (code, summary.ok) == (0, True)
    assert summary.resolved is not None
    model = built(context, spec)
    assert summary.resolved.trainable_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
