"""What the server is told: folders, names, limits."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune_api.rollout import SmokeTest


class ServingError(Exception):
    """The server cannot start, or cannot go on. The message says where, what, and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of one server: one base model, and at most one tuned model beside it.

    The tuned model is an adapter (`adapter_dir`) on the base, or a whole model of its own (`tuned_dir`).
    """

    base_dir: Path
    base_name: str
    tuned_name: str | None = None
    adapter_dir: Path | None = None
    tuned_dir: Path | None = None
    run: int = 0
    """Number of the run that made the tuned model; shown in /v1/models and /healthz."""
    host: str = "0.0.0.0"
    port: int = 8000
    max_concurrent: int = 8
    """Sequences generated at the same time: bounds the memory of the key-value cache."""
    max_queue: int = 64
    """Sequences that may wait beyond those: past that a request gets 429, not an endless wait."""
    max_request_bytes: int = 1 << 20
    max_context: int | None = None
    """Tokens of prompt and answer together; by default what the model was built for."""
    request_timeout_seconds: float = 300.0
    drain_seconds: float = 3.0
    """How long new requests are still answered after SIGTERM, while the endpoint is taken off the Service."""
    shutdown_grace_seconds: float = 30.0
    """How long running requests may go on after that."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a GPU that has it, float32 elsewhere; the rule of training."""
    smoke: SmokeTest = field(default_factory=SmokeTest)
    """What the tuned model is asked before the server is ready. Without a prompt: `question`."""
    question: str = ""
    """Of the held-out examples. Empty: only that it generates at all is tried."""
    threads: int | None = None
    """Threads of the CPU; by default as many as the container may use, which is often less than the node has."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that clients may ask for: the tuned model first."""
        return (self.tuned_name, self.base_name) if self.tuned_name else (self.base_name,)


def cpu_limit(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the CPUs that this process may use: those of its affinity, or fewer when its cgroup has a quota."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        return max(1, min(available, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        # No cgroup v2 here, or "max": no quota.
        return available


def check_config(config: ServerConfig) -> None:
    """Raise ServingError when the settings cannot work together or a folder is not what it should be."""
    tuned = [folder for folder in (config.adapter_dir, config.tuned_dir) if folder is not None]
    if len(tuned) > 1:
        raise ServingError(
            "adapter_dir and tuned_dir are both set: give the adapter or the whole tuned model, not both"
        )
    if bool(tuned) != bool(config.tuned_name):
        raise ServingError("a tuned model needs both a name (tuned_name) and a folder (adapter_dir or tuned_dir)")
    if config.tuned_name == config.base_name:
        raise ServingError(
            f"base and tuned model are both named {config.base_name!r}: clients could not tell them apart"
        )
    for name in ("max_concurrent", "max_request_bytes", "request_timeout_seconds"):
        if getattr(config, name) <= 0:
            raise ServingError(f"{name} is {getattr(config, name)}: it must be above zero")
    check_model_folder(config.base_dir)
    if config.tuned_dir is not None:
        check_model_folder(config.tuned_dir)
    if config.adapter_dir is not None:
        check_adapter_folder(config.adapter_dir)


def check_model_folder(folder: Path) -> None:
    """Raise ServingError unless the folder holds a model as safetensors."""
    if not (folder / "config.json").is_file():
        raise ServingError(f"{folder} has no config.json: it must be the folder of a Hugging Face model")
    if not any(folder.glob("*.safetensors")):
        raise ServingError(f"{folder} has no *.safetensors: other weight formats can run code and are not loaded")


def check_adapter_folder(folder: Path) -> None:
    """Raise ServingError unless the folder holds a PEFT adapter as safetensors."""
    if not (folder / "adapter_config.json").is_file():
        raise ServingError(f"{folder} has no adapter_config.json: it must be the folder of a PEFT adapter")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ServingError(f"{folder} has no adapter_model.safetensors: other weight formats are not loaded")


def is_plain_lora(adapter_dir: Path) -> bool:
    """Say whether an adapter only adds low-rank updates to linear layers, which one batch can switch row by row.

    DoRA, trained biases, retrained modules and other methods change more than that.
    """
    settings = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    extras = ("use_dora", "modules_to_save", "trainable_token_indices", "alora_invocation_tokens", "layer_replication")
    plain_bias = settings.get("bias", "none") == "none" and not settings.get("lora_bias")
    return settings.get("peft_type") == "LORA" and plain_bias and not any(settings.get(name) for name in extras)
