"""What `auto` becomes, rule by rule, and what a run is expected to need."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from tests.tiny_models import make_tiny_chat_model, make_tiny_tokenizer
from transformers import AutoModelForCausalLM, BioGptConfig, GPT2Config

from finetune_api.conditions import FailureReason
from finetune_api.run_config import RunConfig, RunPaths
from finetune_api.spec import (
    BaseModelSpec,
    DatasetSpec,
    EvaluationSpec,
    Hyperparameters,
    MethodSpec,
    MethodType,
    Packing,
    Task,
    TrainData,
)
from finetune_api.status import LengthStats
from finetune_trainer import resolve as rules
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate import ModelShape, measure_shape, memory_bytes
from finetune_trainer.optimization import multiplier, resolve_warmup
from finetune_trainer.resolve import DataSizes, resolve
from finetune_trainer.tasks.chat import Chat

SHAPE = ModelShape(
    parameters=135_000_000,
    trainable=5_000_000,
    layers=30,
    width=576,
    inner_width=1536,
    kv_width=192,
    vocabulary=49152,
    context=2048,
)
EIGHT_B = ModelShape(
    parameters=8_000_000_000,
    trainable=42_000_000,
    layers=32,
    width=4096,
    inner_width=14336,
    kv_width=1024,
    vocabulary=128256,
    context=131072,
)


def config(
    gpus: int = 0, method: MethodSpec | None = None, memory: int | None = None, **hyperparameters: Any
) -> RunConfig:
    return RunConfig(
        namespace="team-a",
        job="travel",
        run=1,
        hash="0" * 16,
        task=Task.CHAT,
        base_model=BaseModelSpec(source="pvc://models/tiny"),
        base_name="tiny",
        tuned_name="travel",
        dataset=DatasetSpec(train=TrainData(source="pvc://data/train.jsonl")),
        method=method or MethodSpec(),
        hyperparameters=Hyperparameters(**hyperparameters),
        evaluation=EvaluationSpec(),
        gpus=gpus,
        memory_limit_bytes=memory,
        paths=RunPaths(run="a", models="b"),
    )


def sizes(examples: int, length: int = 100, longest: int = 200) -> DataSizes:
    return DataSizes(examples, examples * length, max(1, examples // 10) * length, longest)


@pytest.mark.parametrize(
    ("examples", "epochs", "batch"),
    [
        *((1, 25, 1), (9, 11, 1), (33, 3, 1), (34, 3, 1), (100, 3, 2), (184, 3, 4), (1000, 3, 16), (5000, 3, 32)),
        *((8333, 3, 32), (10_000, 2, 32), (100_000, 1, 32)),
    ],
)
def test_epochs_and_batch_follow_the_number_of_examples(examples: int, epochs: int, batch: int) -> None:
    values = resolve(config(), sizes(examples), SHAPE, 256, "r", 2).values
    assert (values.epochs, values.batch_size) == (epochs, batch)
    assert values.micro_batch_size * values.gradient_accumulation == batch
    if examples >= 100:
        assert values.total_steps >= 100


def test_what_is_given_is_taken() -> None:
    given = config(epochs=20, batch_size=6, learning_rate_multiplier="2.5", evaluation_steps=7, checkpoint_steps=14)
    values = resolve(given, sizes(160), SHAPE, 256, "r", 2).values
    assert (values.epochs, values.batch_size, values.evaluation_steps, values.checkpoint_steps) == (20, 6, 7, 14)
    assert values.learning_rate == pytest.approx(5e-4)
    assert values.total_steps == 20 * 27
    assert 6 % values.micro_batch_size == 0


@pytest.mark.parametrize(
    ("method", "rate"), [(MethodSpec(), 2e-4), (MethodSpec(type=MethodType.FULL), 2e-5)], ids=["LoRA", "Full"]
)
def test_learning_rate_depends_on_the_method(method: MethodSpec, rate: float) -> None:
    values = resolve(config(method=method), sizes(160), SHAPE, 256, "r", 2).values
    assert values.learning_rate == rate
    assert (values.lora_rank, values.lora_alpha) == ((16, 32) if rate == 2e-4 else (None, None))


def test_multiplier_of_zero_is_refused() -> None:
    with pytest.raises(UserInputError, match="above 0"):
        multiplier("0.0")


@pytest.mark.parametrize(
    ("wanted", "p99", "context", "expected"),
    [
        *(("auto", 1, 2048, 128), ("auto", 128, 2048, 128), ("auto", 129, 2048, 256), ("auto", 3000, 2048, 2048)),
        *(("auto", 200, 100, 100), ("auto", 200, 0, 256)),
        *((64, 200, 2048, 64), (2048, 200, 2048, 2048), (4096, 1, 0, 4096)),
    ],
)
def test_max_length(wanted: int | str, p99: int, context: int, expected: int) -> None:
    lengths = LengthStats(min=1, p50=1, p90=1, p99=p99, max=9999)
    assert rules.resolve_max_length(wanted, lengths, context) == expected


def test_max_length_above_the_context_is_refused() -> None:
    with pytest.raises(UserInputError, match="2048 tokens of the model's context") as caught:
        rules.resolve_max_length(2049, LengthStats(min=1, p50=1, p90=1, p99=1, max=1), 2048)
    assert caught.value.reason is FailureReason.SPEC_INVALID


@pytest.mark.parametrize(
    ("shape", "gpus", "memory", "length", "rows"),
    [
        (SHAPE, 0, None, 200, 8),  # at most 8 on a CPU
        (SHAPE, 1, None, 200, 32),  # at most 32 on a GPU
        (SHAPE, 1, None, 2048, 4),  # 8,192 tokens
        (SHAPE, 0, 2 * 2**30, 200, 1),  # a small pod
        (EIGHT_B, 1, None, 8192, 1),  # one row even where the estimate says that it is too much
    ],
)
def test_micro_batch_fits_device_and_memory(
    shape: ModelShape, gpus: int, memory: int | None, length: int, rows: int
) -> None:
    found = resolve(config(gpus, memory=memory, batch_size=32), sizes(1000, longest=length), shape, length, "r", 2)
    assert found.values.micro_batch_size == rows


@pytest.mark.parametrize(
    ("evaluation", "checkpoint", "expected"),
    [("auto", "auto", (10, 10)), (5, "auto", (5, 5)), ("auto", 7, (7, 7)), (5, 20, (5, 20))],
)
def test_intervals_follow_each_other(evaluation: Any, checkpoint: Any, expected: tuple[int, int]) -> None:
    wanted = config(epochs=1, batch_size=1, evaluation_steps=evaluation, checkpoint_steps=checkpoint)
    values = resolve(wanted, sizes(100), SHAPE, 256, "r", 2).values
    assert (values.evaluation_steps, values.checkpoint_steps) == expected


def test_long_training_is_saved_about_every_quarter_of_an_hour() -> None:
    found = resolve(config(1), DataSizes(100_000, 400_000_000, 10**6, 8192), EIGHT_B, 8192, "r", 8)
    step = found.estimate.train_seconds / found.values.total_steps
    assert found.values.total_steps > 1000
    assert found.values.checkpoint_steps * step < 2 * rules.LONGEST_INTERVAL


@pytest.mark.parametrize(
    ("choice", "gpus", "installed", "packed"),
    [
        (Packing.AUTO, 0, True, False),
        (Packing.AUTO, 1, False, False),
        (Packing.AUTO, 1, True, True),
        (Packing.ENABLED, 0, False, True),
        (Packing.DISABLED, 1, True, False),
    ],
)
def test_packing(choice: Packing, gpus: int, installed: bool, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "flash_attention_installed", lambda: installed)
    assert resolve(config(gpus, packing=choice), sizes(100), SHAPE, 256, "r", 2).values.packing is packed


def test_packing_where_examples_would_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "flash_attention_installed", lambda: True)
    bloom = replace(SHAPE, packable=False)
    assert resolve(config(1), sizes(100), bloom, 256, "r", 2).values.packing is False
    with pytest.raises(UserInputError, match="cannot keep examples in one row apart") as caught:
        resolve(config(0, packing=Packing.ENABLED), sizes(100), bloom, 256, "r", 2)
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert "packing" in caught.value.advice


def test_precision_and_warm_up() -> None:
    assert resolve(config(0), sizes(100), SHAPE, 256, "r", 2).values.precision == "float32"
    assert resolve(config(1), sizes(100), SHAPE, 256, "r", 2).values.precision == "bfloat16"
    knobs = Hyperparameters()
    assert [resolve_warmup(knobs, steps) for steps in (1, 10, 11, 100, 1000)] == [0, 0, 1, 3, 30]


def test_too_small_a_pod_is_noted_with_both_figures() -> None:
    notes = resolve(config(memory=2**30), sizes(100), SHAPE, 256, "r", 2).notes
    assert len(notes) == 1
    assert "has 1.0 GiB" in notes[0]
    assert resolve(config(memory=64 * 2**30), sizes(100), SHAPE, 256, "r", 2).notes == []


def test_memory_grows_with_everything_that_is_kept() -> None:
    small = memory_bytes(SHAPE, rows=1, length=128, precision="float32")
    assert small < memory_bytes(SHAPE, rows=2, length=128, precision="float32")
    assert small < memory_bytes(SHAPE, rows=1, length=256, precision="float32")
    full = ModelShape(**{**{name: getattr(SHAPE, name) for name in SHAPE.__slots__}, "trainable": SHAPE.parameters})
    assert small < memory_bytes(full, rows=1, length=128, precision="float32")
    # The weights of 8 billion parameters in bfloat16, and a few GiB more: what such a LoRA is known to take.
    assert 16e9 < memory_bytes(EIGHT_B, rows=1, length=2048, precision="bfloat16") < 24e9


def shape_of(folder: Path, method: MethodSpec, source: str) -> ModelShape:
    return measure_shape(folder, Chat(), method, make_tiny_tokenizer(), source)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("shape") / "tiny")


@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"]])
def test_parameters_are_counted_as_the_real_model_has_them(model: Path, targets: list[str] | None) -> None:
    shape = shape_of(model, MethodSpec(rank=4, target_modules=targets), "pvc://models/tiny")
    real = AutoModelForCausalLM.from_pretrained(model)
    assert shape.parameters == sum(p.numel() for p in real.parameters())
    adapted = get_peft_model(real, LoraConfig(r=4, target_modules=targets or "all-linear", task_type="CAUSAL_LM"))
    assert shape.trainable == adapted.get_nb_trainable_parameters()[0]
    assert (shape.layers, shape.width, shape.context) == (2, 32, 256)
    full = shape_of(model, MethodSpec(type=MethodType.FULL), "x")
    assert full.trainable == full.parameters


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        (["nothing"], "match nothing"),
        (["lm_head"], "lm_head is the output layer"),
        (["embed_tokens"], "embed_tokens is an embedding"),
        (["q_proj", "model.embed_tokens"], "embed_tokens is an embedding"),
        (["input_layernorm"], "match nothing"),
    ],
)
def test_wrong_target_modules_are_answered_with_the_right_ones(model: Path, targets: list[str], problem: str) -> None:
    with pytest.raises(UserInputError, match=f"targetModules: .*{problem}") as caught:
        shape_of(model, MethodSpec(target_modules=targets), "x")
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert "q_proj" in caught.value.advice
    assert "lm_head" not in caught.value.advice


def test_an_output_layer_of_another_name_and_projections_of_gpt2(tmp_path: Path) -> None:
    shape = {"vocab_size": 400, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    wide = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    BioGptConfig(**shape, **wide).save_pretrained(tmp_path / "biogpt")
    with pytest.raises(UserInputError, match="is the output layer") as caught:
        shape_of(tmp_path / "biogpt", MethodSpec(target_modules=["output_projection"]), "x")
    assert caught.value.advice.endswith("fc1, fc2, k_proj, out_proj, q_proj, v_proj")
    GPT2Config(**shape, n_embd=32, n_layer=1, n_head=4).save_pretrained(tmp_path / "gpt2")
    assert shape_of(tmp_path / "gpt2", MethodSpec(target_modules=["c_attn"], rank=4), "x").trainable == 4 * 4 * 32


UNUSABLE = [{"model_type": "unheard-of"}, {"architectures": ["LlamaForTokenClassification"]}, {"hidden_size": "wide"}]


@pytest.mark.parametrize("fields", UNUSABLE)
def test_model_that_cannot_be_built_is_refused(model: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    content = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **fields}))
    with pytest.raises(UserInputError, match="hf://a/b") as caught:
        shape_of(tmp_path, MethodSpec(), "hf://a/b")
    assert caught.value.reason is FailureReason.MODEL_INVALID
