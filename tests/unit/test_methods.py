"""Each method, with tiny models on the CPU: what is trained, what is left, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.method_models import (
    ADAPTERS,
    IDS,
    SEED,
    build,
    finished,
    loader,
    loss_of,
    train,
    without_gradient,
)
from tests.tiny_models import make_tiny_chat_model
from tests.trained_runs import one_thread
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from finetune_api.conditions import FailureReason
from finetune_api.spec import MethodSpec
from finetune_api.tasks import MethodType
from finetune_trainer.errors import ArtifactInvalidError, UserInputError
from finetune_trainer.methods.kind import Sizes
from finetune_trainer.methods.low_rank import lora_config
from finetune_trainer.methods.table import METHODS


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("method", list(MethodType))
def test_loss_falls_and_only_what_is_trained_gets_a_gradient(method: MethodType, base_dir: Path) -> None:
    model = build(MethodSpec(type=method), base_dir)
    before = without_gradient(model.eval())
    assert train(model) < before - 0.5
    loss_of(model.train()).backward()
    moving = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    names = {name for name, _ in model.named_parameters()}
    wanted = {name for name in names if ".lora_" in name} if method.adapter else names
    assert moving == wanted
    assert wanted


@pytest.mark.parametrize("double", [None, False])
def test_qlora_keeps_the_base_in_four_bits(base_dir: Path, double: bool | None) -> None:
    spec = MethodSpec(type=MethodType.QLORA, double_quantization=double)
    model = build(spec, base_dir)
    weights = {name: p for name, p in model.named_parameters() if "_proj" in name and "lora_" not in name}
    assert {p.dtype for p in weights.values()} == {torch.uint8}
    assert len(weights) == 14
    assert {p.quant_state.nested for p in weights.values()} == {double is None}
    assert {p.quant_state.quant_type for p in weights.values()} == {"nf4"}
    assert model.get_output_embeddings().weight.dtype == torch.float32
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}
    skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_dir))
    kind = METHODS[MethodType.QLORA]
    quantised = kind.quantised(skeleton)
    assert quantised == 2 * sum(p.numel() for p in weights.values())  # two weights a byte
    sizes = Sizes(sum(p.numel() for p in skeleton.parameters()), 0, quantised)
    assert kind.footprint(sizes, spec, "float32").weights == pytest.approx(
        sum(p.nbytes + _scales(p) for p in model.base_model.model.parameters() if not p.requires_grad), rel=0.05
    )


def _scales(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return 0
    return int(state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0))


@pytest.mark.parametrize(("wide", "inner"), [(32, 64), (40, 53)], ids=["whole blocks", "odd sizes"])
def test_qlora_improves_the_base_as_it_came(tmp_path: Path, wide: int, inner: int) -> None:
    base_dir = make_tiny_chat_model(tmp_path / "base", hidden_size=wide, intermediate_size=inner)
    spec = MethodSpec(type=MethodType.QLORA)
    model = build(spec, base_dir)
    train(model)
    _, directory, form = finished(spec, model, base_dir, tmp_path, loader(AutoModelForCausalLM))
    base = AutoModelForCausalLM.from_pretrained(base_dir).eval()
    untuned = without_gradient(base)
    tuned = without_gradient(PeftModel.from_pretrained(base, directory).eval())
    assert form == "Adapter"
    assert tuned < untuned - 0.5


def test_an_evaluation_leaves_qlora_as_it_was(base_dir: Path) -> None:
    """bitsandbytes packs the weights for CPUs with bfloat16 once and for good, and that product has no gradient."""
    model = build(MethodSpec(type=MethodType.QLORA), base_dir)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}
    without_gradient(model.eval())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    assert not any(getattr(part, "support_avx512bf16_for_cpu", False) for part in model.modules())


def test_trl_leaves_qlora_adapters_in_float32(base_dir: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=build(MethodSpec(type=MethodType.QLORA), base_dir),
        args=SFTConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False),
        train_dataset=Dataset.from_dict({"input_ids": IDS.tolist(), "labels": IDS.tolist()}),
        processing_class=AutoTokenizer.from_pretrained(base_dir),
    )
    kinds = {p.dtype for name, p in trainer.model.named_parameters() if ".lora_" in name}
    assert kinds == {torch.float32}


def test_dora_moves_magnitudes_and_merges_into_the_base(base_dir: Path, tmp_path: Path) -> None:
    spec = MethodSpec(type=MethodType.DORA, dropout="0.1")
    model = build(spec, base_dir)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_magnitude" in n}
    train(model)
    assert len(start) == 14
    assert all(not torch.equal(p, start[n]) for n, p in model.named_parameters() if n in start)
    _, directory, form = finished(spec, model, base_dir, tmp_path, loader(AutoModelForCausalLM))
    merged = AutoModelForCausalLM.from_pretrained(directory).eval()
    assert form == "Model"
    assert not list(directory.glob("adapter*"))
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)


def test_dora_merges_in_float32_what_is_stored_in_bfloat16(tmp_path: Path) -> None:
    base_dir = make_tiny_chat_model(tmp_path / "base", dtype="bfloat16")
    AutoModelForCausalLM.from_pretrained(base_dir).to(torch.bfloat16).save_pretrained(base_dir)
    spec = MethodSpec(type=MethodType.DORA)
    model = build(spec, base_dir)
    train(model)
    _, directory, _ = finished(spec, model, base_dir, tmp_path, loader(AutoModelForCausalLM))
    stored = load_file(directory / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    exact = model.merge_and_unload().state_dict()
    for name, tensor in stored.items():
        assert torch.equal(tensor, exact[name].to(torch.bfloat16)), name


@pytest.mark.parametrize("method", ADAPTERS)
def test_rank_stabilised_scaling(method: MethodType, base_dir: Path) -> None:
    plain = build(MethodSpec(type=method), base_dir).base_model.model.model.layers[0].mlp.up_proj
    stable = build(MethodSpec(type=method, rs_lora=True), base_dir).base_model.model.model.layers[0].mlp.up_proj
    assert plain.scaling["default"] == 8 / 4
    assert stable.scaling["default"] == 8 / 4**0.5


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.QLORA])
def test_initialisations_by_their_names(method: MethodType, base_dir: Path) -> None:
    first = {}
    for name in ("default", "gaussian", "orthogonal"):
        layer = (
            build(MethodSpec(type=method, initialization=name), base_dir).base_model.model.model.layers[0].mlp.down_proj
        )
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        first[name] = a
        assert torch.allclose(b @ a, torch.zeros(()), atol=1e-6), f"{name} does not begin as the base"
    assert first["default"].abs().max() <= 64**-0.5  # uniform, within 1 / sqrt(in)
    assert first["gaussian"].std() == pytest.approx(1 / 4, rel=0.2)  # 1 / rank
    assert not torch.equal(first["orthogonal"], first["default"])
    assert b.abs().sum() > 0  # the only one whose B is not zero


def test_orthogonal_matrices_come_in_pairs(base_dir: Path) -> None:
    with pytest.raises(UserInputError, match=r"method\.initialization: orthogonal needs an even rank") as caught:
        lora_config(MethodSpec(initialization="orthogonal", rank=3), AutoModelForCausalLM.from_pretrained(base_dir))
    assert caught.value.reason is FailureReason.SPEC_INVALID


@pytest.mark.parametrize("method", list(MethodType))
def test_an_untrained_model_is_refused(method: MethodType, base_dir: Path, tmp_path: Path) -> None:
    model = build(MethodSpec(type=method), base_dir)
    with pytest.raises(ArtifactInvalidError, match=r"changes nothing|changed nothing"):
        finished(MethodSpec(type=method), model, base_dir, tmp_path, loader(AutoModelForCausalLM))


def test_frozen_magnitudes_are_noticed(base_dir: Path, tmp_path: Path) -> None:
    model = build(MethodSpec(type=MethodType.DORA), base_dir)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.requires_grad_(False)
    train(model)
    with pytest.raises(ArtifactInvalidError, match="no DoRA magnitude has moved"):
        finished(MethodSpec(type=MethodType.DORA), model, base_dir, tmp_path, loader(AutoModelForCausalLM))


@pytest.mark.parametrize("method", ADAPTERS)
def test_projections_of_gpt2(method: MethodType, tmp_path: Path) -> None:
    """Its layers are transposed, which DoRA's norms and bitsandbytes have to know."""
    base_dir = tmp_path / "base"
    torch.manual_seed(SEED)
    GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=64)).save_pretrained(
        base_dir
    )
    spec = MethodSpec(type=method)
    model = build(spec, base_dir)
    before = without_gradient(model.eval())
    assert train(model, steps=25) < before - 0.3
    _, directory, form = finished(spec, model, base_dir, tmp_path, loader(AutoModelForCausalLM))
    again = AutoModelForCausalLM.from_pretrained(directory if form == "Model" else base_dir)
    again = again if form == "Model" else PeftModel.from_pretrained(again, directory)
    assert without_gradient(again.eval()) == pytest.approx(without_gradient(model), abs=0.1)


@pytest.mark.parametrize(
    ("method", "precision", "weights"),
    [
        (MethodType.LORA, "bfloat16", 2 * 1000 + 4 * 10),
        (MethodType.LORA, "float32", 4 * 1000 + 4 * 10),
        (MethodType.DORA, "bfloat16", 2 * 1000 + 4 * 10),
        (MethodType.QLORA, "bfloat16", round(800 * (0.5 + (1 + 4 / 256) / 64)) + 2 * 200 + 4 * 10),
        (MethodType.FULL, "bfloat16", 4 * 1000),
    ],
)
def test_footprints(method: MethodType, precision: Any, weights: int) -> None:
    sizes = Sizes(1000, 1000 if method is MethodType.FULL else 10, 800 if method is MethodType.QLORA else 0)
    found = METHODS[method].footprint(sizes, MethodSpec(type=method), precision)
    assert found.weights == weights
    assert found.gradients + found.optimizer == 12 * sizes.trainable
