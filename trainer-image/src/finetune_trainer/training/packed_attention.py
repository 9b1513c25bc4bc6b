"""Attention for rows that hold several examples, none of which sees another, at no cost of length squared.

With PyTorch's own attention transformers keeps the examples of a row apart by a mask of all positions by all
positions: right, but it costs memory and the fast kernels, which take no mask. Here the boundaries that TRL hands on
(`cu_seq_lens_q`) go to the kernel for rows of that kind which PyTorch brings (torch.nn.attention.varlen); on a CPU,
and in float32, each example is computed by itself. No package has to be compiled for it, as for flash attention.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from finetune_trainer.training.packable import carries_along

NAME, PROBE = "packed_rows", "packed_rows_probe"
LARGEST_HEAD = 256  # of flash attention's kernels
# What changes the scores in ways that neither kernel knows. An architecture that asks for one is not packed this way.
BEYOND = ("softcap", "s_aux", "position_bias")


class Unsupported(Exception):
    """This architecture's attention is not of the plain kind."""


def register() -> None:
    """Make the implementation known to transformers under `NAME`."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, mask_unless_packed)


def mask_unless_packed(
    *args: Any, attention_mask: torch.Tensor | None = None, allow_is_causal_skip: bool = True, **kwargs: Any
) -> torch.Tensor | None:
    """No mask for rows with several examples, which `packed_attention` keeps apart; else what PyTorch's needs.

    transformers never lets a mask of packed rows be left out (`allow_is_causal_skip`), and packs without padding.
    """
    if attention_mask is None and not allow_is_causal_skip and not kwargs.get("use_vmap"):
        return None
    mask: torch.Tensor | None = sdpa_mask(
        *args, attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip, **kwargs
    )
    return mask


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Queries, keys and values of shape [rows, heads, tokens, width] -> [rows, tokens, heads, width].

    Rows without boundaries (an evaluation with padding, a generation) are computed as by PyTorch's own.
    """
    boundaries = kwargs.get("cu_seq_lens_q")
    if attention_mask is not None or boundaries is None or len(query) != 1:
        usual = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        return usual[0], None
    _refuse_other_kinds(dropout, kwargs)
    window = kwargs.get("sliding_window")
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # [tokens, heads, width]
    if _has_kernel(query, value):
        result = _by_kernel(query, key, value, boundaries, int(kwargs["max_length_q"]), scaling, window)
    else:
        result = _one_by_one(query, key, value, boundaries, scaling, window)
    return result[None], None


def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether every attention layer of a model on the meta device is reached by the boundaries and is of the plain
    kind, and nothing else carries along the row, so that `NAME` may be used."""
    before = model.config._attn_implementation
    reached: list[bool] = []

    def probe(module: torch.nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        _refuse_other_kinds(kwargs.get("dropout", 0.0), kwargs)
        reached.append("cu_seq_lens_q" in kwargs and "max_length_q" in kwargs)
        return query.transpose(1, 2), None

    AttentionInterface.register(PROBE, probe)  # without a mask of its own: transformers makes none then
    try:
        model.set_attn_implementation(PROBE)
        ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
        positions = torch.tensor([[0, 1, 0, 1]], device="meta")
        model.train()(input_ids=ids, position_ids=positions, use_cache=False, **boundaries_of([2, 2], "meta"))
    except Exception:  # no such implementation, no such arguments, or attention of another kind
        return False
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
    return bool(reached) and all(reached) and not carries_along(model)


def boundaries_of(lengths: list[int], device: str) -> dict[str, Any]:
    """What TRL's collator says of a row that holds examples of these lengths."""
    edges = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": max(lengths), "max_length_k": max(lengths)}


def _refuse_other_kinds(dropout: float, kwargs: dict[str, Any]) -> None:
    asked = [name for name in BEYOND if kwargs.get(name) is not None]
    if asked or dropout:
        raise Unsupported(f"attention with {', '.join(asked) or 'dropout'}")


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    half = torch.is_autocast_enabled("cuda") or query.dtype in (torch.bfloat16, torch.float16)
    width = query.shape[-1]
    return query.is_cuda and half and width == value.shape[-1] and width <= LARGEST_HEAD and width % 8 == 0


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # its kernels are for CUDA only

    if query.dtype is torch.float32:  # rotated in float32; autocast does not know this kernel
        query, key, value = (part.to(torch.get_autocast_dtype("cuda")) for part in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"scale": scaling, "window_size": (window - 1 if window else -1, 0)}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = groups > 1
    elif groups > 1:  # PyTorch 2.11
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    edges = boundaries.to(query.device)
    query, key, value = (part.contiguous() for part in (query, key, value))
    result = varlen_attn(query, key, value, edges, edges, longest, longest, **options)
    assert isinstance(result, torch.Tensor)  # a pair only when the sums are asked for
    return result


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    lengths = boundaries.diff().tolist()
    groups = query.shape[1] // key.shape[1]
    parts = []
    for example in zip(*(torch.split(part, lengths) for part in (query, key, value)), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in example)
        near = _near(q.shape[2], window, q.device) if window and q.shape[2] > window else None
        result = scaled_dot_product_attention(
            q, k, v, attn_mask=near, is_causal=near is None, scale=scaling, enable_gqa=groups > 1
        )
        parts.append(result[0].transpose(0, 1))
    return torch.cat(parts)


def _near(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Shape [length, length]: whether a position sees another, of the last `window` up to itself."""
    ago = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None]
    return (ago >= 0) & (ago < window)
