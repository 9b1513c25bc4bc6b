"""Runs for tests of training and evaluation: a tiny base model and a prepared dataset, written by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from finetune_api.conditions import Stage
from finetune_api.reports import Summary
from finetune_api.run_config import RunConfig
from finetune_api.spec import MethodType, Task
from finetune_api.status import DatasetStatus, ResolvedValues
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.masking import ChatMasker, MaskedTokens, mask_completion
from finetune_trainer.training.inputs import load_tokenizer
from tests.tiny_models import make_tiny_chat_model

BASE = "team/models/tiny@0123456789ab"
PLACES = ("Lisbon", "Oslo", "Kyoto", "Quito", "Cairo", "Perth", "Lima", "Rome", "Baku", "Riga", "Bern", "Doha")
WORDS = ("morning", "spring", "winter", "harbour", "boats", "sun")
RESOLVED: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 4,
    "micro_batch_size": 4,
    "gradient_accumulation": 1,
    "learning_rate": 5e-3,
    "max_length": 128,
    "total_steps": 10,
    "warmup_steps": 1,
    "evaluation_steps": 3,
    "checkpoint_steps": 2,
    "packing": False,
    "precision": "float32",
    "lora_rank": 4,
    "lora_alpha": 8,
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, in child processes too: for matrices this small, threads only wait for each other."""
    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    if variable is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = variable


def chats(count: int, offset: int = 0) -> list[dict[str, Any]]:
    """Chats of different lengths, each its own."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Tell me about {PLACES[n % len(PLACES)]} {n}."},
                {"role": "assistant", "content": " and ".join(WORDS[: 1 + n % len(WORDS)]) + f" in {n}."},
            ]
        }
        for n in range(offset, offset + count)
    ]


def completions(count: int, offset: int = 0) -> list[dict[str, Any]]:
    return [
        {"prompt": f"The boats of {PLACES[n % len(PLACES)]} {n}", "completion": f" leave {WORDS[n % len(WORDS)]}."}
        for n in range(offset, offset + count)
    ]


def make_run(
    root: Path,
    *,
    task: Task = Task.CHAT,
    method: MethodType = MethodType.LORA,
    train: Sequence[Mapping[str, Any]] | None = None,
    validation: Sequence[Mapping[str, Any]] | None = None,
    resolved: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    seed: int = 42,
    dropout: str | None = None,
    base: Mapping[str, Any] | None = None,
) -> StageContext:
    """A run folder as Prepare leaves it, below `root`. `resolved`, `evaluation` and `base` override defaults."""
    config = RunConfig.model_validate(
        {
            "namespace": "team",
            "job": "travel",
            "run": 1,
            "hash": "0123456789abcdef",
            "task": task,
            "baseModel": {"source": "pvc://models/tiny"},
            "baseName": "tiny",
            "tunedName": "travel",
            "dataset": {"train": {"source": "pvc://data/train.jsonl"}},
            "method": {"type": method, "dropout": dropout},
            "hyperparameters": {"seed": seed},
            "evaluation": {"maxExamples": 6, "sampleAnswers": 2, **(evaluation or {})},
            "paths": {"run": "team/travel/runs/1-01234567", "models": "team/models"},
        }
    )
    context = StageContext(config=config, artifacts=root, sources=root / "sources")
    artifacts.finish(make_tiny_chat_model(root / BASE, **(base or {})))
    make = chats if task is Task.CHAT else completions
    _write_dataset(context, train or make(18), validation or make(6, offset=100))
    values = ResolvedValues(**{**RESOLVED, **(resolved or {})})
    if unknown := set(resolved or {}) - set(ResolvedValues.model_fields):
        raise AssertionError(f"no resolved values: {unknown}")
    summary = Summary(
        stage=Stage.PREPARE, ok=True, dataset=DatasetStatus(train_examples=18), resolved=values, base_path=BASE
    )
    artifacts.write_json(context.report_path(Stage.PREPARE), summary.model_dump_json(by_alias=True, exclude_none=True))
    return context


def mask(context: StageContext, example: Mapping[str, Any]) -> MaskedTokens:
    tokenizer = load_tokenizer(context.artifacts / BASE)
    if "messages" in example:
        return ChatMasker(tokenizer, frozenset({tokenizer.eos_token_id})).mask(example)
    return mask_completion(tokenizer, example["prompt"], example["completion"])


def _write_dataset(
    context: StageContext, train: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
) -> None:
    for part, examples in (("train", train), ("validation", validation)):
        tokens = [mask(context, example) for example in examples]
        rows = {"input_ids": [t.input_ids for t in tokens], "labels": [t.labels for t in tokens]}
        Dataset.from_dict(rows).save_to_disk(str(context.dataset_dir / part))
        lines = "".join(json.dumps(example) + "\n" for example in examples)
        (context.dataset_dir / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    artifacts.finish(context.dataset_dir)
