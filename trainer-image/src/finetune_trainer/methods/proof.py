"""Is there really a tuned model in the folder? Files first, which costs little; then what moved from the base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from finetune_api.conditions import FailureReason
from finetune_trainer.errors import ArtifactInvalidError, TrainerError
from finetune_trainer.methods.kind import Form, Load

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADVICE = "training is tried from its checkpoints by a new run; report the log when it happens again"
MAGNITUDE = ".lora_magnitude_vector"


def adapter_files(directory: Path, rank: int) -> None:
    """Check the adapter's files. Raises ArtifactInvalidError: nothing in it, a wrong shape, not finite, B all zero,
    a DoRA layer without its magnitude, a head that should have been kept and was not."""
    path = directory / ADAPTER_WEIGHTS
    tensors, settings = _tensors(path), _settings(directory)
    pairs = {name: tensor for name, tensor in tensors.items() if ".lora_A." in name or ".lora_B." in name}
    if not pairs:
        raise invalid(f"{path} holds no LoRA matrices")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise invalid(f"{path}: {name} is not finite")
    for name, a in pairs.items():
        if ".lora_A." in name:
            _check_pair(path, name, a, pairs.get(name.replace(".lora_A.", ".lora_B.")), rank)
            if settings.get("use_dora") and name.split(".lora_A.")[0] + MAGNITUDE not in tensors:
                raise invalid(f"{path}: {name} has no DoRA magnitude")
    if not any(tensor.norm() > 0 for name, tensor in pairs.items() if ".lora_B." in name):
        raise invalid(f"{path}: every B matrix is zero, so that the adapter changes nothing")


def form_of(directory: Path) -> Form:
    """What a method left in the folder."""
    return "Adapter" if (directory / ADAPTER_CONFIG).is_file() else "Model"


def keeps_heads(directory: Path) -> bool:
    """Whether the adapter holds, or should hold, modules that were trained whole: the head of a new task."""
    return bool(_settings(directory).get("modules_to_save"))


def adapter_moved(tuned: PeftModel, directory: Path, dtype: torch.dtype) -> None:
    """Raise ArtifactInvalidError when no DoRA magnitude, or no head, is other than it was before training.

    `tuned` is the adapter of `directory` on its base, which was trained in `dtype`; a fresh head must be loaded in
    that type too, since another draws other numbers.
    """
    layers = [part for part in tuned.modules() if isinstance(part, LoraLayer) and part.lora_magnitude_vector]
    if layers and all(_same_norms(layer, dtype) for layer in layers):
        raise invalid(f"{directory}: no DoRA magnitude has moved, so that only directions were trained")
    heads = [part for part in tuned.modules() if isinstance(part, ModulesToSaveWrapper)]
    # All of them: a model may hold a module that its task never calls.
    if heads and all(_same_weights(head) for head in heads):
        raise invalid(f"{directory}: the head is as it was before training")


def heads_kept(directory: Path, fresh: Collection[str]) -> None:
    """Raise ArtifactInvalidError when the adapter came without one of the modules that the base has no weights for:
    it would be another, random one, wherever the adapter is loaded."""
    kept = {name.rpartition(".")[0] for name in _tensors(directory / ADAPTER_WEIGHTS) if ".lora_" not in name}
    for name in fresh:
        if not any(module.endswith(f".{name}") for module in kept):
            raise invalid(f"{directory} lacks {name}, which the base has no weights for")


def whole_model(directory: Path, base_dir: Path, load: Load) -> None:
    """Check a whole model. Raises ArtifactInvalidError: a weight of its architecture is missing, one is not finite,
    or nothing changed from the base.

    transformers loads both, one after the other, so that other names of the same weights, tied ones, and the head
    of another task that the base came with are no concern of ours. Two models need not fit into memory.
    """
    dtype = stored_dtype(base_dir)
    tuned = _digests(sound(load, directory, dtype), directory)
    base = load(base_dir, dtype)
    before = _digests(base.model, None)
    old = {name for name in tuned.keys() & before.keys() if not _below(name, base.fresh)}
    if not old:
        raise invalid(f"{directory} has no weight in common with its base")
    if all(tuned[name] == before[name] for name in old):
        raise invalid(f"{directory} equals the base model: training changed nothing")


def sound(load: Load, directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a whole model. Raises ArtifactInvalidError when it does not load or its files lack weights."""
    if not any(directory.glob("*.safetensors")):
        raise invalid(f"{directory} holds no safetensors weights")
    try:
        loaded = load(directory, dtype)
    except (TrainerError, SafetensorError, RuntimeError) as error:
        raise invalid(f"{directory} does not load: {error}") from error
    if loaded.fresh:
        more = len(loaded.fresh) - 1
        raise invalid(
            f"{directory} lacks the weights of {loaded.fresh[0]}" + (f" and {more} more modules" if more else "")
        )
    return loaded.model


def on_base(directory: Path, base: PreTrainedModel) -> PeftModel:
    """The adapter on its base. Raises ArtifactInvalidError when it does not load."""
    try:
        return PeftModel.from_pretrained(base, str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise invalid(f"{directory} does not load on its base: {error}") from error


def stored_dtype(base_dir: Path) -> torch.dtype:
    """The type that the base came in; what is made of it is stored likewise."""
    dtype = AutoConfig.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def invalid(message: str, advice: str = ADVICE) -> ArtifactInvalidError:
    return ArtifactInvalidError(message, advice=advice, reason=FailureReason.ARTIFACT_INVALID)


def _check_pair(path: Path, name: str, a: torch.Tensor, b: torch.Tensor | None, rank: int) -> None:
    if b is None:
        raise invalid(f"{path}: {name} has no B matrix")
    if 0 in a.shape or 0 in b.shape or a.shape[0] != rank or b.shape[1] != rank:
        raise invalid(f"{path}: {name} has shapes {tuple(a.shape)} and {tuple(b.shape)}, not of rank {rank}")


def _same_norms(layer: Any, dtype: torch.dtype) -> bool:
    """Whether DoRA's magnitudes are what they begin with: the norm of each output's weights, shape [out]."""
    weight = layer.get_base_layer().weight.detach().to(dtype)
    before = torch.linalg.norm(weight.T if layer.fan_in_fan_out else weight, dim=1)
    return torch.equal(layer.lora_magnitude_vector["default"].weight.float(), before.float())


def _same_weights(head: ModulesToSaveWrapper) -> bool:
    before: Mapping[str, torch.Tensor] = head.original_module.state_dict()
    after: Mapping[str, torch.Tensor] = head.modules_to_save["default"].state_dict()
    return all(torch.equal(after[name].float(), tensor.float()) for name, tensor in before.items())


def _digests(model: PreTrainedModel, directory: Path | None) -> dict[str, bytes]:
    """SHA-256 of each weight. With a `directory`, which the message names, each must be finite."""
    found = {}
    for name, tensor in model.state_dict().items():
        if directory is not None and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise invalid(f"{directory}: {name} is not finite")
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        found[name] = hashlib.sha256(data).digest()
    return found


def _below(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _settings(directory: Path) -> dict[str, Any]:
    path = directory / ADAPTER_CONFIG
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise invalid(f"{path} cannot be read: {error}") from error
    return settings


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise invalid(f"{path} cannot be read: {error}") from error
    return tensors
