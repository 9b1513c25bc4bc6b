"""The run's model folder: the best checkpoint's weights, the tokenizer with the exact chat template, a manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from finetune_api.run_config import RunConfig
from finetune_api.spec import MethodType

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")


def assemble(
    checkpoint: Path, directory: Path, config: RunConfig, revision: str | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Copy what a server needs from the checkpoint into `directory`, replacing what an earlier attempt left.

    Optimizer and random states stay behind: they are pickles, and no one serves them.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for pattern in ADAPTER_FILES if config.method.type is MethodType.LORA else MODEL_FILES:
        for path in checkpoint.glob(pattern):
            shutil.copyfile(path, directory / path.name)
    tokenizer.save_pretrained(directory)
    if config.method.type is MethodType.LORA:
        _name_base(directory / "adapter_config.json", config, revision)


def portable_base_name(config: RunConfig) -> str:
    """OWNER/NAME of a hub model; otherwise the name by which the endpoint answers. Never a path of this pod."""
    source = config.base_model.source
    return source.removeprefix("hf://") if source.startswith("hf://") else config.base_name


def _name_base(path: Path, config: RunConfig, revision: str | None) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = portable_base_name(config)
    settings["revision"] = revision if config.base_model.source.startswith("hf://") else None
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
