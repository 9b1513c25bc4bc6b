"""The estimate against our own trainer on a GPU (`make gpu`, NVIDIA H100 80GB HBM3, PyTorch 2.11).

docs/estimates.md has the same table in words. Two micro batches a step of `rows` x `length` tokens each. A model is
tried in some seconds, so most loads are left to `make soak`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.gpu.setting import GIB, MODELS
from tests.tiny_models import make_tiny_tokenizer

from finetune_api.spec import MethodSpec, MethodType
from finetune_api.tasks import Task
from finetune_trainer.estimate import ModelShape, measure_shape, memory, step_seconds
from finetune_trainer.tasks.table import KINDS

LORA, QLORA, DORA, FULL = MethodType.LORA, MethodType.QLORA, MethodType.DORA, MethodType.FULL
PASSES = 2


@dataclass(frozen=True)
class Load:
    """`peak`: GiB of PyTorch's tensors (max_memory_allocated); `seconds` of the fourth step."""

    model: str
    method: MethodType
    rows: int
    length: int
    recompute: bool
    peak: float
    seconds: float


LOADS = (
    Load("Llama-3.2-1B", LORA, 4, 2048, True, 4.459, 0.5545),
    Load("Llama-3.2-1B", LORA, 4, 2048, False, 17.379, 0.4101),
    Load("Llama-3.2-1B", LORA, 1, 512, True, 2.854, 0.4069),
    Load("Llama-3.2-1B", LORA, 8, 4096, True, 10.235, 2.0991),
    Load("Llama-3.2-1B", QLORA, 4, 2048, True, 2.739, 0.7906),
    Load("Llama-3.2-1B", QLORA, 4, 2048, False, 13.837, 0.5117),
    Load("Llama-3.2-1B", DORA, 4, 2048, True, 5.590, 1.0841),
    Load("Llama-3.2-1B", DORA, 2, 2048, False, 16.024, 0.7084),
    Load("Llama-3.2-1B", FULL, 4, 2048, True, 23.081, 0.5006),
    Load("Llama-3.2-1B", FULL, 4, 2048, False, 37.761, 0.4162),
    Load("Llama-3.1-8B", LORA, 2, 2048, True, 17.963, 1.2172),
    Load("Qwen3-0.6B", LORA, 8, 1024, True, 2.531, 0.9102),
    Load("Qwen3-0.6B", LORA, 8, 1024, False, 17.031, 0.7036),
    Load("Qwen3-0.6B", FULL, 8, 1024, True, 11.165, 0.6757),
    Load("SmolLM2-135M", LORA, 16, 1024, True, 1.557, 0.7047),
)
OFTEN = (0, 1, 4, 14)
Shapes = Callable[[Load], ModelShape]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """The model of a load as its method trains it, each measured once."""
    root, known = tmp_path_factory.mktemp("models"), dict[tuple[str, MethodType], ModelShape]()
    tokenizer = make_tiny_tokenizer()

    def shape(load: Load) -> ModelShape:
        if (load.model, load.method) not in known:
            folder: Path = root / load.model
            folder.mkdir(exist_ok=True)
            fields = {"pad_token_id": 0, "eos_token_id": 1, **MODELS[load.model]}
            (folder / "config.json").write_text(json.dumps(fields))
            spec = MethodSpec(type=load.method)
            known[load.model, load.method] = measure_shape(folder, KINDS[Task.CHAT], spec, tokenizer, load.model)
        return known[load.model, load.method]

    return shape


def cases() -> Iterator[Any]:
    for number, load in enumerate(LOADS):
        name = f"{load.model} {load.method} {load.rows}x{load.length}{' recomputed' if load.recompute else ''}"
        yield pytest.param(load, id=name, marks=() if number in OFTEN else pytest.mark.soak)


@pytest.mark.parametrize("load", list(cases()))
def test_memory_is_within_a_tenth_and_time_within_twice_of_what_was_measured(load: Load, shapes: Shapes) -> None:
    shape = replace(shapes(load), recomputes=load.recompute)
    needs = memory(shape, rows=load.rows, length=load.length, precision="bfloat16")
    assert (needs.total - needs.runtime) / GIB == pytest.approx(load.peak, rel=0.1)
    tokens = PASSES * load.rows * load.length
    expected = step_seconds(shape, tokens=tokens, passes=PASSES, gpus=1, cores=1)
    assert load.seconds / 2 < expected < load.seconds * 2
