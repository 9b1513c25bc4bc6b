"""Out of memory: recognised, and answered once by half the micro batch and twice the accumulation."""

from __future__ import annotations

import torch

from finetune_api.status import ResolvedValues

# What drivers and allocators say when they do not raise torch.OutOfMemoryError.
PHRASES = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "not enough memory: you")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)
    )


def halved(resolved: ResolvedValues) -> ResolvedValues | None:
    """The same batch in smaller pieces: the largest divisor of the micro batch up to its half, and as much more
    accumulation. None when the micro batch is one example already. The order of the data stays the same."""
    micro = resolved.micro_batch_size
    smaller = next((size for size in range(micro // 2, 0, -1) if micro % size == 0), None)
    if smaller is None:
        return None
    factor = micro // smaller
    return resolved.model_copy(
        update={"micro_batch_size": smaller, "gradient_accumulation": resolved.gradient_accumulation * factor}
    )
