"""What a forward and backward pass holds in memory beside weights, gradients and optimizer, by trying it without data.

The model itself, with its adapters, runs on the meta device: its tensors have shapes and no contents, so that a model
of any size takes seconds and no memory. What is alive is added up operation by operation. So nothing has to be known of
an architecture; recomputation, adapters, normalisation and the casts of mixed precision count as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

Pass = Callable[[int, int], torch.Tensor]
"""A forward pass over (rows, tokens of a row): what the backward pass begins with."""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that a pass holds: at its `peak`, and `between` forward and backward, when the loss is computed."""

    peak: float
    between: float


def held_bytes(
    model: torch.nn.Module,
    base: PreTrainedModel,
    run: Pass,
    rows: int,
    length: int,
    *,
    half: bool,
    recompute: bool,
    accumulates: bool = True,
) -> Held:
    """What a pass of `model` holds, which is `base`, perhaps with adapters, on the meta device.

    `half`: with autocast to bfloat16, as on a GPU. `recompute`: layers are computed again in the backward pass.
    `accumulates`: the gradients of an earlier micro batch are there, and not counted; otherwise they come into being
    while activations go, and are counted. Raises whatever the model raises on the meta device, mostly because its
    course depends on its data.
    """
    casts = _Autocast(enabled=half)
    model.train()
    if recompute:
        # The second context is that of the computation done again, which the mode around the first does not reach.
        base.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), casts)})
        base.enable_input_require_grads()
    elif base.supports_gradient_checkpointing:
        base.gradient_checkpointing_disable()
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad and accumulates else None
    with _Alive(model) as alive, casts:
        result = run(rows, length)
        between = alive.now
        result.backward(torch.empty_like(result))  # type: ignore[no-untyped-call]  # torch's own
        del result
    for parameter in model.parameters():
        parameter.grad = None
    return Held(alive.peak, between)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Adds up the storages that operations make, while they live."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self._counted = {id(each.untyped_storage()) for each in [*model.parameters(), *model.buffers()]}
        self.peak: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype is torch.bool or 1  # "is nothing masked, is it one example?": yes
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self._count(each.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = id(storage)
        if key in self._counted:  # a view, or the result of an operation in place
            return
        size = storage.nbytes()
        self._counted.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.now -= size


# What autocast on a GPU computes in bfloat16, and in float32, of what language models use (PyTorch's reference of
# autocast has the lists).
_HALF = {
    functional.linear,
    functional.conv1d,
    functional.scaled_dot_product_attention,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.addmm,
    torch.baddbmm,
    torch.bmm,
    torch.einsum,
    torch.mm,
}
_SINGLE = {
    functional.cross_entropy,
    functional.layer_norm,
    functional.log_softmax,
    functional.softmax,
    torch.Tensor.pow,
    torch.Tensor.softmax,
    torch.cumsum,
    torch.pow,
    torch.rsqrt,
    torch.softmax,
}


class _Autocast(TorchFunctionMode):
    """What the meta device lacks: autocast to bfloat16 as a GPU has it, weights cast once; and fused attention."""

    def __init__(self, *, enabled: bool) -> None:
        super().__init__()
        self._enabled = enabled
        self._weights: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self._enabled and func in _HALF:
            args, kwargs = tree_map(self._half, (args, kwargs))
        elif self._enabled and func in _SINGLE:
            args, kwargs = tree_map(_single, (args, kwargs))
        if func is functional.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)

    def _half(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype is not torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self._weights:
            self._weights[id(value)] = value.to(torch.bfloat16)
        return self._weights[id(value)]

    def __exit__(self, *exception: Any) -> None:
        self._weights.clear()
        super().__exit__(*exception)  # type: ignore[no-untyped-call]


def _single(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16
    return value.to(torch.float32) if half else value


class _Attention(torch.autograd.Function):
    """What a fused kernel keeps, flash or memory-efficient: queries, keys, values, the result and a sum a position.
    The meta device would take the kernel that keeps all scores."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
