"""Models as Train builds them for a method, trained for some steps and finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
)

from finetune_api.spec import MethodSpec
from finetune_api.status import ResolvedValues
from finetune_api.tasks import MethodType
from finetune_trainer.methods.kind import Load, Trained
from finetune_trainer.methods.table import METHODS
from finetune_trainer.training.device import Device

CPU = Device("cpu", "float32", "cpu")
SEED = 0
CAUSAL, ADAPTERS = "CAUSAL_LM", [MethodType.LORA, MethodType.QLORA, MethodType.DORA]


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
