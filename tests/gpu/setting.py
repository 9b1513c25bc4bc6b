"""What a part is given, and the folders of a run that it can train in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from finetune_api.conditions import Stage
from finetune_api.reports import Summary
from finetune_api.run_config import RunConfig
from finetune_api.spec import MethodSpec
from finetune_api.status import DatasetStatus, ResolvedValues
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from tests.tiny_models import make_tiny_tokenizer

GIB = 2**30
# Shapes of well-known models (config.json of the hub's repositories), and two small ones for what takes many runs.
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "4M": {
        "model_type": "llama",
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "20M": {
        "model_type": "llama",
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "SmolLM2-135M": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-1B": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class Setting:
    """`root` is scratch space that all parts share; `smoke`: with a tiny model, to find mistakes."""

    root: Path
    smoke: bool
    gpu: bool = True

    @property
    def gpus(self) -> int:
        return int(self.gpu)

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"

    @property
    def precision(self) -> str:
        return "bfloat16" if self.gpu else "float32"

    def model(self, name: str) -> str:
        return "tiny" if self.smoke else name


def config_of(name: str) -> Any:
    fields = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, **MODELS[name]}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def base_folder(setting: Setting, name: str) -> Path:
    """The model with random weights, in bfloat16, with a tokenizer; made once."""
    folder = setting.root / "artifacts" / "team" / "models" / f"{name}@000000000000"
    if artifacts.is_complete(folder):
        return folder
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = AutoModelForCausalLM.from_config(config_of(name), dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    make_tiny_tokenizer(vocabulary=min(1000, MODELS[name]["vocab_size"])).save_pretrained(folder)
    artifacts.finish(folder)
    return folder


def mixed_lengths(count: int, longest: int, seed: int = 0) -> list[int]:
    """Lengths as of chats: many short ones, few long ones (log-normal, median an eighth of the longest)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.exp(torch.randn(count, generator=generator) * 0.9) * longest / 8
    return [int(min(longest, max(8, length))) for length in drawn]


def rows_of(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Random tokens; the first third of each row, a prompt, is not trained on."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(2, vocabulary, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]})
    return rows


def prepared_run(
    setting: Setting,
    name: str,
    model: str,
    rows: Sequence[Mapping[str, Sequence[int]]],
    *,
    method: MethodSpec,
    resolved: Mapping[str, Any],
    on_disk: bool = True,
) -> StageContext:
    """A run folder as Prepare leaves it. `resolved` overrides what would be resolved. Without `on_disk` the folder of
    the base has no weights."""
    base = base_folder(setting, model) if on_disk else _bare_folder(setting, model)
    config = RunConfig.model_validate(
        {
            "namespace": "team",
            "job": name,
            "run": 1,
            "hash": "0123456789abcdef",
            "task": "Completion",
            "baseModel": {"source": "pvc://models/base"},
            "baseName": "base",
            "tunedName": name,
            "dataset": {"train": {"source": "pvc://data/train.jsonl"}},
            "method": method.model_dump(mode="json", by_alias=True, exclude_none=True),
            "hyperparameters": {},
            "evaluation": {"maxExamples": 4, "sampleAnswers": 1},
            "gpus": setting.gpus,
            "paths": {"run": f"team/{name}/runs/1-01234567", "models": "team/models"},
        }
    )
    context = StageContext(config=config, artifacts=setting.root / "artifacts", sources=setting.root / "sources")
    for part, chosen in (("train", rows), ("validation", rows[:2])):
        Dataset.from_list([dict(row) for row in chosen]).save_to_disk(str(context.dataset_dir / part))
        lines = (json.dumps({"prompt": f"{n}", "completion": f"{n}"}) + "\n" for n in range(len(chosen)))
        (context.dataset_dir / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    artifacts.finish(context.dataset_dir)
    values = ResolvedValues.model_validate({**_defaults(setting, len(rows), method), **resolved})
    summary = Summary(
        stage=Stage.PREPARE,
        ok=True,
        dataset=DatasetStatus(train_examples=len(rows)),
        resolved=values,
        base_path=base.relative_to(context.artifacts).as_posix(),
    )
    artifacts.write_json(context.report_path(Stage.PREPARE), summary.model_dump_json(by_alias=True, exclude_none=True))
    return context


def _defaults(setting: Setting, examples: int, method: MethodSpec) -> dict[str, Any]:
    return {
        "epochs": 1,
        "batch_size": 8,
        "micro_batch_size": 8,
        "gradient_accumulation": 1,
        "learning_rate": 2e-4,
        "max_length": 4096,
        "total_steps": examples // 8,
        "warmup_steps": 1,
        "evaluation_steps": 10_000,
        "checkpoint_steps": 10_000,
        "packing": False,
        "precision": setting.precision,
        "lora_rank": method.resolved_rank if method.type.adapter else None,
        "lora_alpha": method.resolved_alpha if method.type.adapter else None,
    }


def _bare_folder(setting: Setting, name: str) -> Path:
    folder = setting.root / "artifacts" / "team" / "models" / f"{name}-bare@000000000000"
    if not artifacts.is_complete(folder):
        config_of(name).save_pretrained(folder)
        make_tiny_tokenizer(vocabulary=min(1000, MODELS[name]["vocab_size"])).save_pretrained(folder)
        artifacts.finish(folder)
    return folder
