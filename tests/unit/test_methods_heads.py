"""Heads and other layers that a base has no weights for, by each method: trained whole, kept, found again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from tests.method_models import (
    ADAPTERS,
    IDS,
    build,
    finished,
    load_with,
    loader,
    resolved,
    train,
    without_gradient,
)
from tests.tiny_encoders import make_tiny_encoder
from tests.trained_runs import one_thread
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune_api.spec import MethodSpec
from finetune_api.tasks import MethodType
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.methods import proof
from finetune_trainer.methods.table import METHODS


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


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
