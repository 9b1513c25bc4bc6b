"""The parts of `tests.bench.prepare` that are processes of their own, so that the kernel counts them alone."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped]
from statistics import median
from typing import Any

from transformers import AutoTokenizer

from finetune_api.dataset import TrainData
from finetune_trainer.messages import render
from tests.bench.prepare import BATCH, CONTEXT, MILLION, VOCABULARY
from tests.prepared_runs import Laptop
from tests.tiny_models import make_tiny_chat_model, make_tiny_tokenizer

REPEATS = 5  # pairs of the comparison
NAMES = ("tokenizer", "prepare")


def model(folder: Path) -> None:
    """Write the model that all data is prepared for."""
    prose = list(topics.values())
    tokenizer = make_tiny_tokenizer(prose, vocabulary=VOCABULARY)
    tokenizer.model_max_length = CONTEXT
    make_tiny_chat_model(folder / "models" / "tiny", tokenizer=tokenizer, max_position_embeddings=CONTEXT)


def prepare(folder: Path, data: Path, name: str = "run") -> dict[str, Any]:
    """Prepare the file as a pod does."""
    laptop = Laptop(folder / data.stem / name, folder / "models")
    (laptop.root / "sources" / "pvc" / "data").symlink_to(data.parent)
    context = laptop.context(TrainData(source=f"pvc://data/{data.name}"), max_lost_percent=100)
    started = time.monotonic()
    code, summary = laptop.prepare(context)
    if code or summary.dataset is None:
        raise SystemExit(str(summary.failure))
    found = summary.dataset
    return {
        "examples": found.train_examples + found.validation_examples,
        "train_tokens": found.train_tokens,
        "seconds": round(time.monotonic() - started, 2),
    }


def compare(folder: Path, data: Path) -> dict[str, Any]:
    """Prepare and the tokenizer alone on the same texts, in turn: seconds for a million tokens, the medians."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "models" / "tiny")
    texts = [render(tokenizer, json.loads(line)["messages"], prompt=False) for line in data.open(encoding="utf-8")]
    tokens = sum(map(len, tokenizer(texts, verbose=False)["input_ids"]))
    prepare(folder, data, "first")  # a pod's libraries are loaded whatever its data
    pairs = []
    for turn in range(REPEATS):
        alone = _timed(lambda: [tokenizer(batch, verbose=False) for batch in _batches(texts)])
        pairs.append((alone, _timed(lambda turn=turn: prepare(folder, data, str(turn)))))
    result: dict[str, Any] = {"tokens": tokens}
    for index, kind in enumerate(("seconds", "processor_seconds")):
        found = [(alone[index], whole[index]) for alone, whole in pairs]
        medians = [median(each) * MILLION / tokens for each in zip(*found, strict=True)]
        ratios = sorted(round(whole / alone, 2) for alone, whole in found)
        result[kind] = {**dict(zip(NAMES, (round(value, 2) for value in medians), strict=True)), "ratios": ratios}
        result[kind]["ratio"] = median(ratios)
    return result


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of all processors."""
    started, used = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - started, time.process_time() - used


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), BATCH):
        yield list(texts[start : start + BATCH])


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    parts = {"model": model, "prepare": prepare, "compare": compare}
    print(json.dumps(parts[sys.argv[1]](*map(Path, sys.argv[2:]))))
