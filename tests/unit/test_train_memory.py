"""Out of memory is recognised, and halving keeps the batch."""

from __future__ import annotations

import pytest
import torch
from tests.trained_runs import RESOLVED

from finetune_api.status import ResolvedValues
from finetune_trainer.training.memory import halved, is_out_of_memory


@pytest.mark.parametrize(
    ("micro", "accumulation", "expected"),
    [
        (8, 1, (4, 2)),
        (4, 3, (2, 6)),
        (6, 1, (3, 2)),
        (3, 2, (1, 6)),  # 3 has no half: ones
        (9, 1, (3, 3)),
        (2, 4, (1, 8)),
        (1, 8, None),
    ],
)
def test_half_the_micro_batch(micro: int, accumulation: int, expected: tuple[int, int] | None) -> None:
    values = {"micro_batch_size": micro, "gradient_accumulation": accumulation, "batch_size": micro * accumulation}
    smaller = halved(ResolvedValues.model_validate({**RESOLVED, **values}))
    if expected is None:
        assert smaller is None
        return
    assert smaller is not None
    assert (smaller.micro_batch_size, smaller.gradient_accumulation) == expected
    assert smaller.micro_batch_size * smaller.gradient_accumulation == smaller.batch_size


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
