"""Adapters and models that only look like ones are refused, and the message says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import make_tiny_adapter, make_tiny_chat_model

from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.methods import proof
from finetune_trainer.tasks.chat import Chat
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.training.device import Device
from finetune_trainer.training.inputs import Loaded, load_model
from finetune_trainer.verification import load_tuned

Tensors = dict[str, torch.Tensor]
CPU = Device("cpu", "float32", "cpu")


def load(directory: Path, dtype: torch.dtype) -> Loaded:
    return load_model(directory, CPU, Chat(), Facts(), dtype=dtype)


def zero_b(tensors: Tensors) -> Tensors:
    return {name: t * 0 if "lora_B" in name else t for name, t in tensors.items()}


def drop_b(tensors: Tensors) -> Tensors:
    return {name: t for name, t in tensors.items() if "layers.1.mlp.down_proj.lora_B" not in name}


def one_nan(tensors: Tensors) -> Tensors:
    name = next(iter(tensors))
    return {**tensors, name: tensors[name].clone().fill_(float("nan"))}


def nothing(tensors: Tensors) -> Tensors:
    return {"other": torch.ones(1)}


def empty_shapes(tensors: Tensors) -> Tensors:  # what a sharded optimizer that was not gathered leaves
    return {name: torch.empty(0, t.shape[1]) for name, t in tensors.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_tiny_adapter(base, tmp_path / "adapter", rank=4)


def test_a_sound_adapter(base: Path, adapter: Path) -> None:
    proof.adapter_files(adapter, 4)
    assert load_tuned(adapter, base, CPU, Chat(), Facts(), "Adapter").training is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (zero_b, "every B matrix is zero"),
        (drop_b, "has no B matrix"),
        (one_nan, "is not finite"),
        (nothing, "holds no LoRA matrices"),
        (empty_shapes, "not of rank 4"),
    ],
)
def test_a_broken_adapter(adapter: Path, change: Callable[[Tensors], Tensors], message: str) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: t.contiguous() for name, t in change(load_file(path)).items()}, path)
    with pytest.raises(ArtifactInvalidError, match=message) as caught:
        proof.adapter_files(adapter, 4)
    assert str(path) in caught.value.message
    assert caught.value.advice


def test_another_rank_than_configured(adapter: Path) -> None:
    with pytest.raises(ArtifactInvalidError, match="not of rank 8"):
        proof.adapter_files(adapter, 8)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"])
def test_no_readable_file(adapter: Path, content: bytes | None) -> None:
    path = adapter / "adapter_model.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactInvalidError, match="cannot be read"):
        proof.adapter_files(adapter, 4)


def test_an_adapter_of_another_base(adapter: Path, tmp_path: Path) -> None:
    other = make_tiny_chat_model(tmp_path / "wide", hidden_size=64)
    with pytest.raises(ArtifactInvalidError, match="does not load on its base"):
        load_tuned(adapter, other, CPU, Chat(), Facts(), "Adapter")


def test_whole_models(base: Path, tmp_path: Path) -> None:
    tuned = make_tiny_chat_model(tmp_path / "tuned", seed=1)
    proof.whole_model(tuned, base, load)
    with pytest.raises(ArtifactInvalidError, match="training changed nothing"):
        proof.whole_model(base, base, load)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_nan, "is not finite"),
        (nothing, "lacks the weights of lm_head and 20 more modules"),
        (lambda tensors: {name: t[..., :1] for name, t in tensors.items()}, "does not load"),
    ],
)
def test_broken_whole_models(base: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], message: str) -> None:
    tuned = make_tiny_chat_model(tmp_path / "tuned", seed=1)
    path = tuned / "model.safetensors"
    save_file({name: t.contiguous() for name, t in change(load_file(path)).items()}, path)
    with pytest.raises(ArtifactInvalidError, match=message):
        proof.whole_model(tuned, base, load)


def test_a_model_folder_without_weights(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactInvalidError, match="holds no safetensors"):
        proof.whole_model(tmp_path, base, load)
