"""Peak memory of real training steps beside the estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from finetune_api.spec import MethodSpec, MethodType
from finetune_trainer.estimate import measure_shape, memory
from finetune_trainer.tasks.table import KINDS
from finetune_trainer.training.inputs import load_prepared, load_tokenizer
from tests.gpu.setting import GIB, Setting, prepared_run, rows_of
from tests.gpu.trainers import ours

STEPS = 3  # the second has the optimizer's state, the third shows that no more comes


@dataclass(frozen=True)
class Load:
    """One training whose memory is measured."""

    model: str
    method: MethodType
    rows: int
    length: int
    recompute: bool = True
    accumulation: int = 2


# From what tells most to what may be missed when the time is up.
LOADS = (
    Load("Llama-3.2-1B", MethodType.LORA, 4, 2048),
    Load("Llama-3.2-1B", MethodType.LORA, 4, 2048, recompute=False),
    Load("Llama-3.2-1B", MethodType.QLORA, 4, 2048),
    Load("Llama-3.2-1B", MethodType.DORA, 4, 2048),
    Load("Llama-3.2-1B", MethodType.FULL, 4, 2048),
    Load("Llama-3.1-8B", MethodType.LORA, 2, 2048),
    Load("Llama-3.2-1B", MethodType.LORA, 1, 512),
    Load("Llama-3.2-1B", MethodType.LORA, 8, 4096),
    Load("Llama-3.2-1B", MethodType.FULL, 4, 2048, recompute=False),
    Load("Llama-3.2-1B", MethodType.QLORA, 4, 2048, recompute=False),
    Load("Llama-3.2-1B", MethodType.DORA, 2, 2048, recompute=False),
    Load("Qwen3-0.6B", MethodType.LORA, 8, 1024),
    Load("Qwen3-0.6B", MethodType.LORA, 8, 1024, recompute=False),
    Load("Qwen3-0.6B", MethodType.FULL, 8, 1024),
    Load("SmolLM2-135M", MethodType.LORA, 16, 1024),
    Load("SmolLM2-135M", MethodType.LORA, 16, 1024, recompute=False),
    Load("SmolLM2-135M", MethodType.FULL, 16, 1024),
    Load("SmolLM2-135M", MethodType.FULL, 16, 1024, recompute=False, accumulation=1),
    Load("Llama-3.1-8B", MethodType.LORA, 1, 2048, recompute=False),
)


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    loads = LOADS if not setting.smoke else (Load("tiny", MethodType.LORA, 2, 64), Load("tiny", MethodType.FULL, 2, 64))
    for load in loads:
        yield {"load": vars(load), **_measured(setting, load)}


def _measured(setting: Setting, load: Load) -> dict[str, Any]:
    name = setting.model(load.model)
    quantised = load.method is MethodType.QLORA  # quantised while it is read from disk
    count = load.rows * load.accumulation * (STEPS + 1)
    method = MethodSpec(type=load.method)
    context = prepared_run(
        setting,
        "memory",
        name,
        rows_of([load.length] * count, 1000),
        method=method,
        resolved={
            "batch_size": load.rows * load.accumulation,
            "micro_batch_size": load.rows,
            "gradient_accumulation": load.accumulation,
            "max_length": load.length,
        },
        on_disk=quantised,
    )
    prepared = load_prepared(context)
    shape = measure_shape(
        prepared.base_dir, KINDS[context.config.task], method, load_tokenizer(prepared.base_dir), "random weights"
    )
    needs = memory(
        shape,
        rows=load.rows,
        length=load.length,
        precision=prepared.resolved.precision,
        recompute=load.recompute,
        accumulates=load.accumulation > 1,
    )
    found = _trained(setting, context, load, on_disk=quantised)
    estimate = needs.total - needs.runtime
    found |= {
        "parameters": shape.parameters,
        "trainable": shape.trainable,
        "estimate_gib": round(estimate / GIB, 3),
        "parts_gib": {each: round(getattr(needs, each) / GIB, 3) for each in needs.__slots__},
    }
    if "peak_gib" in found:
        found["estimate_over_peak"] = round(found["estimate_gib"] / found["peak_gib"], 3) if found["peak_gib"] else None
    return found


def _trained(setting: Setting, context: Any, load: Load, *, on_disk: bool) -> dict[str, Any]:
    """Peak of the tensors, of what the allocator took, and of what the driver says is taken; GiB."""
    if setting.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        watch = ours(context, STEPS + 1, recompute=load.recompute, on_disk=on_disk)
    except torch.OutOfMemoryError as error:
        return {"error": f"out of memory: {str(error)[:200]}"}
    found: dict[str, Any] = {"seconds_a_step": round(watch.times[-1] - watch.times[-2], 4)}
    found["tokens_per_second"] = round(load.rows * load.accumulation * load.length / found["seconds_a_step"], 1)
    if setting.gpu:
        reserved = torch.cuda.max_memory_reserved()
        free, total = torch.cuda.mem_get_info()
        found |= {
            "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 3),
            "reserved_gib": round(reserved / GIB, 3),
            # What is not PyTorch's own: context, kernels, libraries' workspaces.
            "beside_gib": round((total - free - torch.cuda.memory_reserved()) / GIB, 3),
        }
    return found
