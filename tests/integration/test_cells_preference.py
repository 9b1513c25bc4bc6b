"""Preference by every method: a model that says yes or no by chance learns which is liked, is evaluated and served."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from safetensors.torch import load_file
from starlette.testclient import TestClient
from tests.prepared_runs import PLACES, Laptop, lines, rows
from tests.tiny_models import make_tiny_chat_model, make_tiny_tokenizer
from tests.trained_runs import one_thread
from transformers import AutoModelForCausalLM, GenerationConfig

from finetune_api.conditions import GateVerdict, Stage
from finetune_api.gate import judge
from finetune_api.reports import EvaluateReport, Summary
from finetune_api.spec import GateRule, Hyperparameters, MethodSpec, MethodType, Task
from finetune_trainer import frame
from finetune_trainer.context import StageContext
from finetune_trainer.errors import InterruptedStageError
from finetune_trainer.masking import ChatMasker
from finetune_trainer.serving.app import create_app
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.stages import serve, train
from finetune_trainer.training import checkpoints
from finetune_trainer.training.dpo import DpoTrainer
from finetune_trainer.training.inputs import load_tokenizer

NOISE = 0.1  # of the weights while the base is made: what it says must survive 4 bits
BOUND = 60.0  # seconds after which a wait is a failure
MONTHS = ("March", "May", "June", "July")
ASKED = [(place, month) for month in MONTHS for place in PLACES]
OWN_RATE = {MethodType.FULL: 1e-6}  # of the task; 1e-5 for adapters
RATE = {MethodType.FULL: 2e-4}  # tiny models bear and need more: 8e-4 for adapters


def pair(place: str, month: str) -> dict[str, Any]:
    """In OpenAI's form."""
    return {
        "input": {"messages": [{"role": "user", "content": f"Is {place} nice in {month}?"}]},
        "preferred_output": [{"role": "assistant", "content": f"Yes, {place} is nice."}],
        "non_preferred_output": [{"role": "assistant", "content": f"No, not {place}."}],
    }


def short_pair(place: str, month: str) -> dict[str, Any]:
    """The same in TRL's form."""
    asked, better, worse = _texts(pair(place, month))
    return {"prompt": asked, "chosen": better, "rejected": worse}


PAIRS = [pair(*asked) for asked in ASKED]
TRAIN, HELD_OUT = PAIRS[:36], PAIRS[36:]


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    with one_thread():
        yield


def teach_both(folder: Path, steps: int) -> None:
    """Make the model in `folder` one that was tuned before: it answers with either text, no rather than yes."""
    tokenizer = make_tiny_tokenizer([line for row in PAIRS for line in _texts(row)])
    make_tiny_chat_model(folder, tokenizer=tokenizer, hidden_size=64, intermediate_size=128)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chosen = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08, generator=chosen)
    masker = ChatMasker(tokenizer, frozenset({tokenizer.eos_token_id}))
    chats = []
    for row in PAIRS:
        for answer, times in (("preferred_output", 1), ("non_preferred_output", 2)):
            chats += [masker.mask({"messages": [*row["input"]["messages"], *row[answer]]})] * times
    longest = max(len(chat.input_ids) for chat in chats)
    ids = torch.tensor([[*chat.input_ids, *[0] * (longest - len(chat.input_ids))] for chat in chats])
    labels = torch.tensor([[*chat.labels, *[-100] * (longest - len(chat.labels))] for chat in chats])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = torch.randperm(len(chats), generator=chosen)[:24]
        noise = [NOISE * p.detach().std() * torch.randn(p.shape, generator=chosen) for p in model.parameters()]
        _add(model, noise, 1)
        model(input_ids=ids[batch], labels=labels[batch]).loss.backward()
        _add(model, noise, -1)
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)


def _add(model: Any, noise: list[torch.Tensor], sign: int) -> None:
    with torch.no_grad():
        for parameter, change in zip(model.parameters(), noise, strict=True):
            parameter += sign * change


def _texts(row: dict[str, Any]) -> list[str]:
    return [m["content"] for m in [*row["input"]["messages"], *row["preferred_output"], *row["non_preferred_output"]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base `tiny`."""
    root = tmp_path_factory.mktemp("bases")
    teach_both(root / "tiny", 250)
    return root


@dataclass(frozen=True)
class Cell:
    """A finished run."""

    context: StageContext
    prepared: Summary
    trained: Summary
    report: EvaluateReport

    def value(self, model: str, metric: str) -> float:
        found: float = getattr(self.report.evaluation, model).model_dump(by_alias=True)[metric]
        return found


def job(root: Path, models: Path, method: MethodType, data: list[dict[str, Any]], **knobs: Any) -> StageContext:
    """A run that is not yet prepared."""
    laptop = Laptop(root, models)
    rate = RATE.get(method, 8e-4) / OWN_RATE.get(method, 1e-5)
    values: dict[str, Any] = {"epochs": 6, "batch_size": 4, "beta": "0.5", "learning_rate_multiplier": f"{rate:g}"}
    context = laptop.context(
        laptop.put("train.jsonl", lines(data)),
        laptop.put("validation.jsonl", lines(HELD_OUT)),
        task=Task.PREFERENCE,
        hyperparameters=Hyperparameters(**{**values, **knobs}),
    )
    spec = MethodSpec(type=method, rank=8 if method.adapter else None)
    return replace(context, config=context.config.model_copy(update={"method": spec}))


def run_stages(context: StageContext, *stages: Stage) -> list[Summary]:
    message = context.artifacts.parent / "termination-log"
    for stage in stages:
        assert frame.run_stage(stage, context, message) == 0, message.read_text()
    return [Summary.model_validate_json(context.report_path(stage).read_bytes()) for stage in stages]


def run_cell(root: Path, models: Path, method: MethodType, data: list[dict[str, Any]], **knobs: Any) -> Cell:
    context = job(root, models, method, data, **knobs)
    prepared, trained, _ = run_stages(context, Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE)
    report = EvaluateReport.model_validate_json((context.evaluation_dir / "report.json").read_bytes())
    return Cell(context, prepared, trained, report)


@contextmanager
def served(context: StageContext) -> Iterator[openai.OpenAI]:
    config = serve.server_config(context, "127.0.0.1", 8000)
    engine = Engine(config, Metrics())
    with TestClient(create_app(config, engine), base_url="http://server") as http:
        end = time.monotonic() + BOUND
        while http.get("/readyz").status_code != 200:
            assert engine.alive, engine.failure
            assert time.monotonic() < end
        yield openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http, max_retries=0)


@pytest.mark.parametrize("method", MethodType)
def test_what_is_preferred_is_learned_measured_and_served(models: Path, tmp_path: Path, method: MethodType) -> None:
    cell = run_cell(tmp_path, models, method, TRAIN)
    assert cell.value("base", "loss") == pytest.approx(math.log(2), rel=1e-9)
    assert (cell.value("base", "rewardAccuracy"), cell.value("base", "rewardMargin")) == (0.5, 0)
    assert cell.value("tuned", "loss") < 0.62 < math.log(2)
    assert cell.value("tuned", "rewardAccuracy") > 0.9
    assert cell.value("tuned", "rewardMargin") > 0
    evaluation = cell.report.evaluation
    assert evaluation.loss_difference is not None
    assert evaluation.loss_difference.low > 0
    # What training chose the checkpoint by is what is reported. QLoRA is measured on the base as it came
    close = 2e-2 if method is MethodType.QLORA else 1e-4
    assert cell.trained.eval_loss == pytest.approx(cell.value("tuned", "loss"), rel=close)
    for least, verdict in (("0.8", GateVerdict.PASSED), ("1.1", GateVerdict.FAILED)):
        rule = GateRule.model_validate({"metric": "rewardAccuracy", "min": least})
        assert judge([rule], evaluation).verdict is verdict
    with served(cell.context) as client:
        said = {model: [ask(client, model, sample.prompt) for sample in cell.report.samples] for model in NAMES}
    assert said["travel"] == [sample.tuned for sample in cell.report.samples]
    assert said["tiny"] == [sample.base for sample in cell.report.samples]
    assert all(text.startswith("No") for text in said["tiny"])
    assert all(text.startswith("Yes") for text in said["travel"])


NAMES = ("tiny", "travel")


def ask(client: openai.OpenAI, model: str, question: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=20, temperature=0
    )
    return (answer.choices[0].message.content or "").strip()


def test_what_auto_became(models: Path, tmp_path: Path) -> None:
    context = job(tmp_path, models, MethodType.LORA, TRAIN, beta=None, learning_rate_multiplier="auto")
    (summary,) = run_stages(context, Stage.PREPARE)
    assert summary.resolved is not None
    assert (summary.resolved.beta, summary.resolved.learning_rate) == (0.1, pytest.approx(1e-5))
    assert summary.dataset is not None
    assert summary.dataset.train_examples == 36


def test_both_forms_are_the_same_training(models: Path, tmp_path: Path) -> None:
    """OpenAI's form and TRL's, as texts, become the same rows, of which nothing is lost."""
    one, other = (
        job(tmp_path / "a", models, MethodType.LORA, TRAIN),
        job(tmp_path / "b", models, MethodType.LORA, [short_pair(*asked) for asked in ASKED[:36]]),
    )
    for context in (one, other):
        run_stages(context, Stage.PREPARE)
    assert rows(one, "train") == rows(other, "train")
    tokenizer = load_tokenizer(models / "tiny")
    for row, line in zip(rows(one, "train"), TRAIN, strict=True):
        asked, better, worse = _texts(line)
        assert tokenizer.decode(row["prompt_ids"]) == f"<|user|>{asked}<|end|><|assistant|>"
        assert tokenizer.decode(row["chosen_ids"]) == f"{better}<|end|>"
        assert tokenizer.decode(row["rejected_ids"]) == f"{worse}<|end|>"


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_a_resumed_run_ends_with_the_same_weights(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: MethodType
) -> None:
    """The base's log-probabilities are the base's, not those of the checkpoint that the training goes on from."""
    whole, stopped = (job(tmp_path / name, models, method, TRAIN, epochs=2) for name in "ab")
    _, undisturbed = run_stages(whole, Stage.PREPARE, Stage.TRAIN)
    run_stages(stopped, Stage.PREPARE)
    with monkeypatch.context() as patch:
        inject(patch, 7)
        with pytest.raises(InterruptedStageError, match=r"checkpoint saved at step 8 of 18"):
            train.run(stopped)
    summary = train.run(stopped)
    assert (summary.resumed_from_step, summary.steps) == (8, 18)
    assert summary.eval_loss == undisturbed.eval_loss
    weights = [load_file(next(context.model_dir.glob("*.safetensors"))) for context in (whole, stopped)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    # TRL's copy of the adapter is nowhere.
    assert not [path for path in tmp_path.rglob("*") if path.name == "ref" or ".ref." in path.name]


def inject(patch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM to ourselves in the middle of step `step` + 1."""
    stock = DpoTrainer.training_step

    def training_step(self: DpoTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(self, *args, **kwargs)

    patch.setattr(DpoTrainer, "training_step", training_step)


def test_a_stop_while_the_base_is_measured(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = job(tmp_path, models, MethodType.FULL, TRAIN)
    run_stages(context, Stage.PREPARE)
    stock = DpoTrainer._precompute_ref_logps

    def precompute(self: DpoTrainer, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return stock(self, *args)

    monkeypatch.setattr(DpoTrainer, "_precompute_ref_logps", precompute)
    with pytest.raises(InterruptedStageError, match="the base model was being measured"):
        train.run(context)
    assert not list(context.checkpoints_dir.glob("*"))


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_the_batch_may_be_cut(models: Path, tmp_path: Path, method: MethodType) -> None:
    """4 x 1 and 1 x 4 pairs of different lengths are the same training."""
    curves = []
    for micro in (4, 1):
        context = job(tmp_path / str(micro), models, method, TRAIN, epochs=1)
        (prepared,) = run_stages(context, Stage.PREPARE)
        assert prepared.resolved is not None
        cut = {"micro_batch_size": micro, "gradient_accumulation": 4 // micro}
        changed = prepared.model_copy(update={"resolved": prepared.resolved.model_copy(update=cut)})
        context.report_path(Stage.PREPARE).write_text(changed.model_dump_json(by_alias=True, exclude_none=True))
        train.run(context)
        newest = checkpoints.newest(context.checkpoints_dir)
        assert newest is not None
        state = json.loads((newest.path / "trainer_state.json").read_text())
        curves.append([entry["loss"] for entry in state["log_history"] if "loss" in entry])
    assert len(curves[0]) == 9
    assert curves[0][0] == pytest.approx(math.log(2), rel=1e-6)  # nothing was learned yet
    assert curves[0][-1] < 0.69
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_a_tuned_model_is_tuned_again(models: Path, tmp_path: Path) -> None:
    """The base may be what another run left: it is then the reference."""
    first = run_cell(tmp_path / "first", models, MethodType.FULL, TRAIN)
    again = tmp_path / "models"
    shutil.copytree(first.context.model_dir, again / "tiny")
    turned = [
        {**line, "preferred_output": line["non_preferred_output"], "non_preferred_output": line["preferred_output"]}
        for line in TRAIN
    ]
    cell = run_cell(tmp_path / "second", again, MethodType.LORA, turned, epochs=2)
    assert cell.report.samples[0].base == first.report.samples[0].tuned
    assert cell.value("base", "rewardAccuracy") == 0.5
    assert cell.value("tuned", "rewardAccuracy") < 0.1  # of pairs that are held out the old way round
