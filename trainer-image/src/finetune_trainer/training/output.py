"""The run's model folder: the best checkpoint's weights, the tokenizer with the exact chat template, a manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from finetune_api.run_config import RunConfig
from finetune_trainer import artifacts
from finetune_trainer.training.device import Device
from finetune_trainer.training.inputs import FACTS, Prepared, load_model

CPU = Device("cpu", "float32", "cpu")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def assemble(
    checkpoint: Path,
    directory: Path,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
) -> None:
    """Put what a server needs from the checkpoint into `directory`, replacing what an earlier attempt left.

    Optimizer and random states stay behind: they are pickles, and no one serves them.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if config.method.type.adapter:
        for name in ADAPTER_FILES:
            shutil.copyfile(checkpoint / name, directory / name)
        _name_base(directory / "adapter_config.json", config, prepared.resolved.revision)
    else:
        # Trained in float32, served as the base came: a server of twice the size would be a surprise.
        dtype = AutoConfig.from_pretrained(prepared.base_dir, local_files_only=True).dtype or torch.float32
        load_model(checkpoint, CPU, prepared.kind, prepared.facts, dtype=dtype).model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    artifacts.write_json(directory / FACTS, prepared.facts.to_json())


def portable_base_name(config: RunConfig) -> str:
    """OWNER/NAME of a hub model; otherwise the name by which the endpoint answers. Never a path of this pod."""
    source = config.base_model.source
    return source.removeprefix("hf://") if source.startswith("hf://") else config.base_name


def _name_base(path: Path, config: RunConfig, revision: str | None) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = portable_base_name(config)
    settings["revision"] = revision if config.base_model.source.startswith("hf://") else None
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
