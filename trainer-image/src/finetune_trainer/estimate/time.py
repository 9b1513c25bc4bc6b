"""How long a training takes: operations by their number, and what a pass costs however small it is."""

from __future__ import annotations

import math

from finetune_api.status import Estimate
from finetune_api.tasks import MethodType
from finetune_trainer.estimate.memory import memory_bytes
from finetune_trainer.estimate.shape import ModelShape
from finetune_trainer.methods.kind import Precision
from finetune_trainer.methods.table import METHODS

# Floating point operations a second that training really gets. GPU: Prepare does not know which one it will be; between
# 40 % of an A100's 312e12 in bfloat16 (PaLM, arXiv 2204.02311, reports 46 %, NeMo 41 %) and what our trainer got of an
# H100 with models of 1 and 8 billion parameters (197e12 to 324e12, docs/estimates.md). CPU: 25e9 a core in float32.
GPU_RATE = 200e12
CPU_RATE = 25e9
# Seconds that a pass costs however small it is. On a CPU Python's, once and a layer, beside the operations. A GPU
# computes while Python launches what comes next, so that the longer of both counts: launching LoRA's kernels of a
# layer, forward and backward, as measured beside an H100, and how much longer that takes with these methods.
PASS_OVERHEAD, LAYER_OVERHEAD = 0.02, 0.004
LAYER_LAUNCHES = 0.0095
LAUNCHES = {MethodType.QLORA: 1.5, MethodType.DORA: 2.0}
FORWARD_AGAIN = 4 / 3  # of a forward pass and a backward pass of twice its length


def step_seconds(shape: ModelShape, *, tokens: float, passes: int, gpus: int, cores: int) -> float:
    """Seconds of one optimizer step over `tokens` tokens in `passes` forward and backward passes.

    6 operations a parameter and token, and 4 with LoRA, which needs no gradient of the frozen weights
    (Kaplan et al., arXiv 2001.08361, section 2.1); 2 more where the forward pass is done again, as on a GPU.
    """
    again = gpus > 0 if shape.recomputes is None else shape.recomputes
    operations = (METHODS[shape.method.type].operations + (2 if again else 0)) * shape.parameters * tokens
    if not gpus:
        return operations / (CPU_RATE * cores) + passes * (PASS_OVERHEAD + LAYER_OVERHEAD * shape.layers)
    launches = LAYER_LAUNCHES * shape.layers * LAUNCHES.get(shape.method.type, 1.0) * (FORWARD_AGAIN if again else 1)
    return max(operations / (GPU_RATE * gpus), passes * launches)


def estimate(
    shape: ModelShape,
    *,
    rows: int,
    length: int,
    precision: Precision,
    seconds_per_step: float,
    steps: int,
    evaluations: int,
    evaluation_tokens: int,
    train_tokens_per_step: float,
) -> Estimate:
    """Peak memory in bytes and training time in seconds, evaluations included (a third of the operations a token)."""
    share = evaluation_tokens / train_tokens_per_step if train_tokens_per_step else 0.0
    seconds = seconds_per_step * (steps + evaluations * share / (2 if shape.lora else 3))
    return Estimate(
        memory_bytes=memory_bytes(shape, rows=rows, length=length, precision=precision),
        train_seconds=math.ceil(seconds),
    )
