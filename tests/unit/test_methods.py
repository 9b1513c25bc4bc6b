"""Each method, with tiny models on the CPU: what is trained, what is left, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from tests.tiny_encoders import make_tiny_encoder
from tests.tiny_models import make_tiny_chat_model
from tests.trained_runs import one_thread
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from finetune_api.conditions import FailureReason
from finetune_api.spec import MethodSpec
from finetune_api.status import ResolvedValues
from finetune_api.tasks import MethodType
from finetune_trainer.errors import ArtifactInvalidError, UserInputError
from finetune_trainer.methods import proof
from finetune_trainer.methods.kind import Load, Sizes, Trained
from finetune_trainer.methods.low_rank import lora_config
from finetune_trainer.methods.table import METHODS
from finetune_trainer.training.device import Device

CPU = Device("cpu", "float32", "cpu")
CAUSAL, ADAPTERS = "CAUSAL_LM", [MethodType.LORA, MethodType.QLORA, MethodType.DORA]
SEED = 0


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("base"))


def loader(auto_model: Any, **options: Any) -> Load:
    def load(directory: Path, dtype: torch.dtype) -> Any:
        return load_with(auto_model, directory, dtype=dtype, **options)

    return load


def load_with(auto_model: Any, directory: Path, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model, info = auto_model.from_pretrained(directory, output_loading_info=True, **options)
    return SimpleNamespace(model=model, fresh=tuple(sorted({n.rpartition(".")[0] for n in info["missing_keys"]})))


def resolved(rank: int = 4) -> ResolvedValues:
    values = dict.fromkeys(("epochs", "batch_size", "micro_batch_size", "gradient_accumulation"), 1)
    values |= dict.fromkeys(("max_length", "total_steps", "warmup_steps", "evaluation_steps"), 1)
    return ResolvedValues(
        **values,
        checkpoint_steps=1,
        learning_rate=1e-3,
        packing=False,
        precision="float32",
        lora_rank=rank,
        lora_alpha=2 * rank,
    )


def build(
    spec: MethodSpec, directory: Path, *, auto_model: Any = AutoModelForCausalLM, peft_type: str = CAUSAL, **more: Any
) -> Any:
    """The model as Train would build it."""
    kind = METHODS[spec.type]

    def skeleton() -> Any:
        with torch.device("meta"):
            return auto_model.from_config(AutoConfig.from_pretrained(directory, **more))

    loaded = load_with(auto_model, directory, **kind.load_options(spec, CPU, skeleton), **more)
    torch.manual_seed(SEED)
    return kind.wrap(loaded.model, spec, resolved(), peft_type=peft_type, fresh=loaded.fresh)


IDS = torch.arange(40, 76).reshape(3, 12) * 7 % 380


def loss_of(model: Any) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=IDS, labels=IDS).loss
    return loss


def train(model: Any, loss: Callable[[Any], torch.Tensor] = loss_of, *, steps: int = 15, rate: float = 1e-2) -> float:
    """Steps of Adam with an evaluation in the middle, as Train has them; returns the loss before the last step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    found = torch.tensor(0.0)
    for step in range(steps):
        if step == steps // 2:
            model.eval()
            with torch.no_grad():
                loss(model)
        model.train()
        found = loss(model)
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return float(found.detach())


def finished(spec: MethodSpec, model: Any, base_dir: Path, tmp_path: Path, load: Load) -> tuple[Trained, Path, str]:
    checkpoint, directory = tmp_path / "checkpoint-1", tmp_path / "model"
    model.save_pretrained(checkpoint)
    directory.mkdir()
    trained = Trained(checkpoint, base_dir, torch.float32, 4, load)
    form = METHODS[spec.type].finish(trained, directory)
    METHODS[spec.type].verify(trained, directory, form)
    return trained, directory, form


def without_gradient(model: Any, loss: Callable[[Any], torch.Tensor] = loss_of) -> float:
    with torch.no_grad():
        return float(loss(model))


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
@pytest.mark.parametrize("arch", ["bert", "bert-without-pooler", "distilbert"])
def test_new_heads_are_kept_and_found_again(method: MethodType, arch: Any, tmp_path: Path) -> None:
    """Also layers below the head that the base has no weights for: they would be random again at each loading."""
    base_dir = make_tiny_encoder(tmp_path / "base", kind=arch)
    more = {"num_labels": 3, "problem_type": "single_label_classification"}
    spec, auto = MethodSpec(type=method), AutoModelForSequenceClassification
    model = build(spec, base_dir, auto_model=auto, peft_type="SEQ_CLS", **more)

    def loss(model: Any) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=IDS % 80, labels=torch.tensor([0, 1, 2])).loss
        return found

    before = without_gradient(model.eval(), loss)
    assert train(model, loss, steps=25) < before - 0.3
    after = without_gradient(model, loss)
    load = loader(auto, **more)
    trained, directory, form = finished(spec, model, base_dir, tmp_path, load)
    assert form == ("Model" if method is MethodType.FULL else "Adapter")
    torch.manual_seed(99)
    again = auto.from_pretrained(directory if form == "Model" else base_dir, **more)
    again = again if form == "Model" else PeftModel.from_pretrained(again, directory)
    assert without_gradient(again.eval(), loss) == pytest.approx(after, abs=0.3 if method is MethodType.QLORA else 1e-4)
    if form == "Adapter":
        _drop(directory, "pre_classifier" if arch == "distilbert" else "classifier")
        with pytest.raises(ArtifactInvalidError, match=r"lacks (pre_)?classifier, which the base has no weights for"):
            METHODS[method].verify(trained, directory, "Adapter")


def _drop(directory: Path, part: str) -> None:
    path = directory / proof.ADAPTER_WEIGHTS
    save_file({name: t for name, t in load_file(path).items() if f".{part}." not in name}, path)


@pytest.mark.parametrize(
    ("auto", "peft_type", "head"),
    [
        (AutoModelForTokenClassification, "TOKEN_CLS", "classifier"),
        (AutoModelForQuestionAnswering, "QUESTION_ANS", "qa_outputs"),
    ],
)
@pytest.mark.parametrize("method", ADAPTERS)
def test_linear_heads_of_other_tasks(method: MethodType, auto: Any, peft_type: str, head: str, tmp_path: Path) -> None:
    """PEFT takes them for layers that get an adapter, and then cannot keep them."""
    base_dir = make_tiny_encoder(tmp_path / "base")
    model = build(MethodSpec(type=method), base_dir, auto_model=auto, peft_type=peft_type)
    kept = [name for name, part in model.named_modules() if isinstance(part, ModulesToSaveWrapper)]
    assert kept == [f"base_model.model.{head}"]
    trained = {name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}
    assert trained == {f"base_model.model.{head}.modules_to_save.default.{part}" for part in ("weight", "bias")}


def test_heads_are_trained_in_float32_on_a_bfloat16_base(tmp_path: Path) -> None:
    base = load_with(AutoModelForSequenceClassification, make_tiny_encoder(tmp_path / "base"), dtype=torch.bfloat16)
    kind = METHODS[MethodType.DORA]
    model = kind.wrap(base.model, MethodSpec(type=MethodType.DORA), resolved(), peft_type="SEQ_CLS", fresh=base.fresh)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


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


def test_an_unmoved_head_is_noticed(tmp_path: Path) -> None:
    base_dir = make_tiny_encoder(tmp_path / "base")
    auto = AutoModelForSequenceClassification
    model = build(MethodSpec(), base_dir, auto_model=auto, peft_type="SEQ_CLS")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    train(model, lambda m: m(input_ids=IDS % 80, labels=torch.tensor([0, 1, 1])).loss)
    with pytest.raises(ArtifactInvalidError, match="head is as it was"):
        finished(MethodSpec(), model, base_dir, tmp_path, loader(auto))


def test_a_whole_model_of_another_task_than_its_base(tmp_path: Path) -> None:
    """The base is a BertForMaskedLM: its cls.predictions are missed by no one, and the pooler is new."""
    base_dir = make_tiny_encoder(tmp_path / "base", kind="bert-without-pooler")
    spec, auto = MethodSpec(type=MethodType.FULL), AutoModelForSequenceClassification
    model = build(spec, base_dir, auto_model=auto)
    train(model, lambda m: m(input_ids=IDS % 80, labels=torch.tensor([0, 1, 1])).loss)
    trained, directory, form = finished(spec, model, base_dir, tmp_path, loader(auto))
    path = directory / "model.safetensors"
    whole = load_file(path)
    for change, message in (
        ({n: t for n, t in whole.items() if "pooler" not in n}, "lacks the weights of bert.pooler.dense"),
        (whole | {"classifier.bias": torch.full((2,), torch.nan)}, "classifier.bias is not finite"),
    ):
        save_file(change, path, metadata={"format": "pt"})
        with pytest.raises(ArtifactInvalidError, match=message):
            METHODS[MethodType.FULL].verify(trained, directory, form)


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
    assert found.optimizer == 12 * sizes.trainable
