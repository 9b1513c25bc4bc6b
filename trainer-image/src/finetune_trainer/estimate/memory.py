"""Peak memory of the training process: what is counted, what is tried, and what the output layer and PyTorch take."""

from __future__ import annotations

from finetune_api.optimization import OPTIMIZERS, Optimizer
from finetune_trainer.estimate.needs import Needs
from finetune_trainer.estimate.shape import ModelShape
from finetune_trainer.methods.kind import BYTES, FLOAT32, Precision, Sizes
from finetune_trainer.methods.table import METHODS

# CUDA context, kernels and cuBLAS workspace; Python with torch, transformers and the data loader.
GPU_RUNTIME_BYTES = 1 * 2**30
CPU_RUNTIME_BYTES = 700 * 2**20
# TRL computes the loss in tiles of so many tokens and words (trl/kernels/chunked_logprob.py). Without Triton, on a
# CPU, a tile is there four times: the scores, transformed, their exponentials, and those times the scores.
TILE_TOKENS, TILE_WORDS, CPU_TILES = 4_096, 32_768, 4

ADAM = OPTIMIZERS[Optimizer.ADAMW].state_bytes  # what the methods' footprints count with


def memory_bytes(
    shape: ModelShape, *, rows: int, length: int, precision: Precision, recompute: bool | None = None
) -> int:
    """Peak memory of the training process with micro batches of `rows` x `length` tokens."""
    return memory(shape, rows=rows, length=length, precision=precision, recompute=recompute).total


def memory(
    shape: ModelShape,
    *,
    rows: int,
    length: int,
    precision: Precision,
    recompute: bool | None = None,
    accumulates: bool = True,
) -> Needs:
    """The same by what it is for. `recompute`: whether layers are computed again in the backward pass; the trainer does
    so on a GPU unless the shape says otherwise. `accumulates`: whether a step has several micro batches, so that
    gradients are there all the time. What on a GPU is in bfloat16 is in float32 on a CPU."""
    gpu = precision == "bfloat16"
    recompute = shape.recomputes if recompute is None else recompute
    recompute = gpu if recompute is None else recompute
    method = METHODS[shape.method.type]
    held = method.footprint(Sizes(shape.parameters, shape.trainable, shape.quantised), shape.method, precision)
    passes = shape.activations(rows, length, precision, recompute=recompute, accumulates=accumulates)
    # A layer in 4 bits is unpacked for each use; PyTorch's AdamW makes the roots of all second moments at once.
    unpacked = shape.largest * BYTES[precision] if shape.quantised else 0
    roots = shape.trainable * FLOAT32 if gpu and shape.optimizer is Optimizer.ADAMW else 0
    # The loss is computed between forward and backward, when what a layer's backward pass needs is not there.
    loss = passes.between + output_bytes(shape, rows * length, precision) if shape.tiled else 0
    activations = max(round(passes.peak) + unpacked, roots)
    return Needs(
        frozen=held.frozen,
        trained=held.trained,
        gradients=held.gradients,
        optimizer=round(held.optimizer * OPTIMIZERS[shape.optimizer].state_bytes / ADAM),
        activations=activations,
        output=max(0, round(loss) - activations),
        runtime=GPU_RUNTIME_BYTES if gpu else CPU_RUNTIME_BYTES,
        block=(held.frozen + held.trained) // max(1, shape.layers),
    )


def output_bytes(shape: ModelShape, tokens: int, precision: Precision) -> int:
    """TRL's loss: the hidden states of the trained-on tokens and their gradient, one tile of scores, and, where the
    output layer is trained, its gradient in float32."""
    gpu = precision == "bfloat16"
    states = tokens * shape.width * (2 * BYTES[precision] + FLOAT32)
    tile = min(tokens, TILE_TOKENS) * min(shape.vocabulary, TILE_WORDS) * BYTES[precision] * (1 if gpu else CPU_TILES)
    gradient = 0 if shape.lora else shape.vocabulary * shape.width * FLOAT32
    return states + tile + gradient
