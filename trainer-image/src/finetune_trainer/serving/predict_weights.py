"""The model of a server that predicts: whole, or an adapter with its head on the base."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from finetune_trainer.serving.adapters import as_measured
from finetune_trainer.serving.config import ServerConfig, cpu_limit
from finetune_trainer.serving.predictor import PredictModel
from finetune_trainer.serving.weights import load_tokenizer, pick_device
from finetune_trainer.tasks.classification_text import tell_padding
from finetune_trainer.tasks.kind import Facts, TaskKind
from finetune_trainer.tasks.windows import positions
from finetune_trainer.training.device import computing_precision

logger = logging.getLogger(__name__)

MOST_CONTEXT = 131_072  # where neither model nor tokenizer names a limit


def load_predict_model(config: ServerConfig, kind: TaskKind, facts: Facts) -> PredictModel:
    """Load the tuned model, or without one the base. Only local safetensors; nothing in the folders is executed.

    One model answers here, with its adapter as Evaluate measured it: see `as_measured`.
    """
    device = torch.device(pick_device(config.device))
    if device.type == "cpu":
        torch.set_num_threads(config.threads or cpu_limit())
    module = _load(config.tuned_dir or config.base_dir, config, kind, facts, device)
    if config.adapter_dir is not None:
        module = as_measured(module, config.adapter_dir)
    tokenizer = load_tokenizer(config.adapter_dir or config.tuned_dir or config.base_dir, config.base_dir)
    tell_padding(module, tokenizer)
    name = config.tuned_name or config.base_name
    logger.info("loaded %s on %s", name, device)
    return PredictModel(
        name=name,
        module=module.eval(),
        tokenizer=tokenizer,
        facts=facts,
        context=_context(module, tokenizer, config.max_context),
    )


def _load(folder: Path, config: ServerConfig, kind: TaskKind, facts: Facts, device: torch.device) -> PreTrainedModel:
    wanted = computing_precision(device.type, "bfloat16") if config.dtype == "auto" else config.dtype
    model = kind.auto_model.from_pretrained(
        folder,
        dtype=getattr(torch, wanted),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        **kind.model_options(facts),
    )
    return model.to(device)


def _context(module: PreTrainedModel, tokenizer: Any, most: int | None) -> int:
    """Tokens of a text. Some models take fewer than they have positions for, which their tokenizers know."""
    built_for = positions(module.config.get_text_config())
    return int(min(built_for or MOST_CONTEXT, tokenizer.model_max_length, most or MOST_CONTEXT, MOST_CONTEXT))
