"""Which files of a model are fetched, and whether what was fetched is a model that can be tuned."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from finetune_api.conditions import FailureReason
from finetune_trainer.errors import UserInputError

GENERATION = "generation_config.json"
# Weights as safetensors, configuration and tokenizer as JSON or text. No code, no pickles, no subfolders.
WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    GENERATION,
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",  # Marian has one a language
    "target.spm",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
    "NOTICE*",
)
UNWANTED = ("consolidated*.safetensors", "adapter_*")  # a second copy of the weights; an adapter is no base
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.msgpack", "*.h5", "*.gguf")


def wanted_files(names: Iterable[str], source: str) -> list[str]:
    """The files to fetch, sorted. Raises UserInputError (ModelInvalid) when there are no safetensors weights."""
    known = sorted(names)
    wanted = [name for name in known if _matches(name, WANTED) and not _matches(name, UNWANTED)]
    if any(name.endswith(".safetensors") for name in wanted):
        return wanted
    if "adapter_config.json" in known:
        raise invalid(f"{source} is an adapter, not a base model", "name the base model that the adapter belongs to")
    if any(_matches(name, PICKLES) for name in known):
        raise invalid(
            f"{source} has its weights only in formats that are not read: pickles can run code when they are loaded",
            "use a repository or revision with safetensors weights",
        )
    raise invalid(f"{source} has no safetensors weights", "name a folder in Hugging Face format")


def check_model_folder(folder: Path, source: str) -> None:
    """Raise UserInputError (ModelInvalid) unless the folder has a configuration, a tokenizer and whole weights."""
    config = _read_config(folder, source)
    if (folder / GENERATION).exists():
        _read_object(folder, GENERATION, source)
    if "model_type" not in config:
        raise invalid(f"{source}: config.json names no model_type", "name a folder in Hugging Face format")
    if config.get("quantization_config"):
        raise invalid(f"{source} is quantised, and quantised weights are not tuned", "use the unquantised model")
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise invalid(f"{source} has no tokenizer", "put the tokenizer's files beside the weights")
    shards = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        missing = sorted(_shards_of(index, source) - shards)
        if missing:
            raise invalid(f"{source}: {missing[0]} is missing ({len(missing)} in all)", "upload the missing weights")
    for name in sorted(shards):
        _check_weights(folder / name, source)


def _shards_of(index: Path, source: str) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise invalid(f"{source}: {index.name} is damaged: {error}", "upload the model again") from error


def _read_config(folder: Path, source: str) -> dict[str, Any]:
    try:
        return _read_object(folder, "config.json", source)
    except FileNotFoundError:
        raise invalid(f"{source} has no config.json", "name a folder in Hugging Face format") from None


def _read_object(folder: Path, name: str, source: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise invalid(f"{source}: {name} is not valid JSON: {error}", "upload the model again") from error
    if not isinstance(content, dict):
        raise invalid(f"{source}: {name} is not an object", "upload the model again")
    return content


def _check_weights(path: Path, source: str) -> None:
    """Read the header, which says how long the file must be: a download that broke off shows here."""
    try:
        with safe_open(path, framework="np") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        raise invalid(f"{source}: {path.name} is damaged: {error}", "upload the model again") from error


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def invalid(message: str, advice: str) -> UserInputError:
    return UserInputError(message, advice=advice, reason=FailureReason.MODEL_INVALID)
