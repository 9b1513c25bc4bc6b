"""The loaded models: one base, and the tuned model as an adapter switched row by row, or as a second model."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from finetune_trainer.endings import end_ids, never_written
from finetune_trainer.messages import prompt_ids
from finetune_trainer.serving.adapters import as_measured
from finetune_trainer.serving.config import ServerConfig, cpu_limit, is_plain_lora
from finetune_trainer.serving.lane import Lane
from finetune_trainer.serving.seq2seq import Seq2SeqLane, context_of
from finetune_trainer.tasks.seq2seq_data import source_ids
from finetune_trainer.tasks.seq2seq_steps import first_tokens
from finetune_trainer.training.device import computing_precision

logger = logging.getLogger(__name__)

ADAPTER = "tuned"
NO_ADAPTER = "__base__"  # PEFT's word for a row that takes no adapter


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a name stands for. `banned` are ids that are never an answer: padding, and beyond the tokenizer.

    `decoder` is a copy of `tokenizer`: a fast tokenizer changes itself while it encodes, and must not be used by two
    threads at a time.
    """

    name: str
    lane: Lane
    adapter: str
    tokenizer: Any
    decoder: Any
    end_ids: frozenset[int]
    banned: torch.Tensor
    context: int
    defaults: dict[str, float]

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt that the answer goes on from, or of one that an encoder reads to its end."""
        read = source_ids if isinstance(self.lane, Seq2SeqLane) else prompt_ids
        return read(self.tokenizer, prompt)


@dataclass(slots=True)
class Weights:
    """All that is loaded, by name, and a count of the forward calls."""

    models: dict[str, ServedModel]
    device: torch.device
    calls: int = field(default=0)

    def forward(
        self, lane: Lane, adapters: Sequence[str], ids: torch.Tensor, mask: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Return the scores after the last token of each row: float32 on the CPU, of shape (rows, vocabulary).

        `ids` is of shape (rows, new tokens); `mask`, of shape (rows, old and new tokens), has zeros where a row is
        padded on the left. `cache` is extended in place.
        """
        self.calls += 1
        options = {"adapter_names": list(adapters)} if lane.switched else {}
        with torch.no_grad():
            last = lane.forward(ids, mask, cache, self.device, options)[:, -1]
        scores: torch.Tensor = last.to("cpu", torch.float32, copy=True)
        return scores


def load_weights(config: ServerConfig) -> Weights:
    """Load what the configuration names. Only local safetensors; nothing in the folders is executed."""
    device = torch.device(pick_device(config.device))
    if device.type == "cpu":
        torch.set_num_threads(config.threads or cpu_limit())
    base = load_model(config.base_dir, config, device)
    tuned_folder = config.adapter_dir or config.tuned_dir
    tokenizer = load_tokenizer(tuned_folder or config.base_dir, config.base_dir)
    if tuned_folder is None:
        lanes = {config.base_name: (lane_of(base, tokenizer), NO_ADAPTER)}
    elif config.adapter_dir is not None and is_plain_lora(config.adapter_dir):
        shared = PeftModel.from_pretrained(base, config.adapter_dir, adapter_name=ADAPTER).eval()
        lane = lane_of(shared, tokenizer, switched=True)
        lanes = {config.base_name: (lane, NO_ADAPTER), str(config.tuned_name): (lane, ADAPTER)}
    else:
        tuned = lane_of(load_tuned_copy(config, device), tokenizer)
        lanes = {config.base_name: (lane_of(base, tokenizer), NO_ADAPTER), str(config.tuned_name): (tuned, NO_ADAPTER)}
    models = {}
    for name, (lane, adapter) in lanes.items():
        folder = tuned_folder if tuned_folder is not None and name == config.tuned_name else config.base_dir
        tokenizer = load_tokenizer(folder, config.base_dir)
        if tokenizer.chat_template is None and tuned_folder is not None:
            tokenizer.chat_template = load_tokenizer(tuned_folder, config.base_dir).chat_template
        models[name] = describe(name, lane, adapter, tokenizer, config)
    logger.info("loaded %s on %s", ", ".join(models), device)
    return Weights(models=models, device=device)


def pick_device(wanted: str) -> str:
    """Return the device for `auto`: a GPU when there is one."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(folder: Path, config: ServerConfig, device: torch.device) -> Any:
    """Load one model, ready to generate, in the type it was trained in. On a CPU that is float32."""
    wanted = computing_precision(device.type, "bfloat16") if config.dtype == "auto" else config.dtype
    dtype: torch.dtype = getattr(torch, wanted)
    settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    kind = AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return model.to(device).eval()


def load_tuned_copy(config: ServerConfig, device: torch.device) -> Any:
    """Load the tuned model apart: its own folder, or an adapter that cannot be switched, on a base of its own."""
    if config.adapter_dir is None:
        return load_model(config.tuned_dir or config.base_dir, config, device)
    return as_measured(load_model(config.base_dir, config, device), config.adapter_dir).eval()


def lane_of(module: Any, tokenizer: Any, *, switched: bool = False) -> Lane:
    """Return the lane of a loaded model."""
    inner = module.get_base_model() if isinstance(module, PeftModel) else module
    parameters = frozenset(inspect.signature(inner.forward).parameters)
    if inner.config.is_encoder_decoder:
        return Seq2SeqLane(module, switched, parameters, first=tuple(first_tokens(inner, tokenizer)))
    return Lane(module, switched, parameters)


def load_tokenizer(folder: Path, fallback: Path) -> Any:
    """Load the tokenizer that lies with a model, or the base model's when an adapter came without one."""
    source = folder if (folder / "tokenizer_config.json").is_file() else fallback
    return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)


def describe(name: str, lane: Lane, adapter: str, tokenizer: Any, config: ServerConfig) -> ServedModel:
    """Gather what generation has to know of a model."""
    text_config = lane.module.config.get_text_config()
    if isinstance(lane, Seq2SeqLane):
        built_for = context_of(text_config, tokenizer)
    else:
        built_for = getattr(text_config, "max_position_embeddings", None) or tokenizer.model_max_length
    ends = end_ids(lane.module.generation_config, tokenizer)
    banned = never_written(tokenizer, text_config.vocab_size, ends)
    return ServedModel(
        name=name,
        lane=lane,
        adapter=adapter,
        tokenizer=tokenizer,
        decoder=copy.deepcopy(tokenizer),
        end_ids=ends,
        banned=torch.tensor(banned, dtype=torch.long),
        context=min(int(built_for), config.max_context or int(built_for)),
        defaults=sampling_defaults(lane.module.generation_config),
    )


def sampling_defaults(generation: Any) -> dict[str, float]:
    """Return what the model's authors recommend (as vLLM does), where they do."""
    names = ("temperature", "top_p", "top_k")
    found = {name: getattr(generation, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}
