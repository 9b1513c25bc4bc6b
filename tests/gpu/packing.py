"""Packed rows: is nothing seen that should not be, and what does it bring?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from finetune_trainer.training import packed_attention
from tests.gpu.setting import Setting, config_of

LENGTHS = [700, 33, 1, 290, 1024]
TIMED = 8


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    for name in ("Llama-3.2-1B", "Qwen3-0.6B"):
        yield _kept_apart(setting, setting.model(name))
    yield {"sliding": _sliding(setting)}
    if setting.gpu:
        for count, length in ((16, 512), (4, 2048), (32, 1024)):
            yield {"attention_seconds": _attention(count, length)}


def _model(setting: Setting, name: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = config_of(name)
    for field, value in fields.items():
        setattr(config, field, value)
    with torch.device(setting.device):
        dtype = torch.bfloat16 if setting.gpu else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:  # wide enough that a neighbour that is seen makes a difference
                torch.nn.init.normal_(parameter, std=0.05)
    return model


@torch.no_grad()
def _differences(setting: Setting, model: Any) -> dict[str, float]:
    """Largest difference of the scores to those of the examples alone: packed; packed with other neighbours; with
    the mask of length squared; and if it were one long example, which is what contamination looks like."""
    device = setting.device
    vocabulary = model.config.vocab_size
    ids = torch.randint(2, vocabulary, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0)).to(device)
    positions = torch.cat([torch.arange(length, device=device) for length in LENGTHS])[None]
    alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in ids.split(LENGTHS, 1)], 1)
    masked = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    long = model(input_ids=ids, use_cache=False).logits
    packed_attention.register()
    model.set_attn_implementation(packed_attention.NAME)
    given = packed_attention.boundaries_of(LENGTHS, device)
    packed = model(input_ids=ids, position_ids=positions, use_cache=False, **given).logits
    other = ids.clone()
    other[:, : LENGTHS[0]] = torch.randint(2, vocabulary, (1, LENGTHS[0])).to(device)
    neighbour = model(input_ids=other, position_ids=positions, use_cache=False, **given).logits
    start = LENGTHS[0]
    return {
        "packed": float((packed - alone).abs().max()),
        "masked": float((masked - alone).abs().max()),
        "one_long_example": float((long - alone).abs().max()),
        "another_neighbour": float((neighbour - packed)[:, start:].abs().max()),  # exactly 0 when none is seen
        "of": float(alone.abs().max()),
    }


def _kept_apart(setting: Setting, name: str) -> dict[str, Any]:
    found = _differences(setting, _model(setting, name))
    ok = found["another_neighbour"] == 0 and found["packed"] <= 4 * max(found["masked"], 1e-5)
    return {"model": name, "differences": found, "ok": ok}


def _sliding(setting: Setting) -> dict[str, Any]:
    fields = {"sliding_window": 64}
    config = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    from transformers import MistralConfig

    torch.manual_seed(0)
    chosen = MistralConfig(vocab_size=1000, intermediate_size=512, **config, **fields)
    with torch.device(setting.device):
        dtype = torch.bfloat16 if setting.gpu else torch.float32
        model = AutoModelForCausalLM.from_config(chosen, dtype=dtype).eval()
    return _differences(setting, model)


def _attention(count: int, length: int) -> dict[str, Any]:
    """Seconds of a layer's attention, forward and backward, for `count` examples: padded to `length`, and packed at a
    mean of a third of it, by PyTorch's kernel and by a mask."""
    heads, kv, width = 32, 8, 64
    lengths = [max(1, int(length * share)) for share in torch.linspace(0.05, 0.6, count).tolist()]
    lengths[-1] = length
    tokens = sum(lengths)

    def made(rows: int, tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(rows, heads, tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    padded = [made(count, length, each) for each in (heads, kv, kv)]
    packed = [made(1, tokens, each) for each in (heads, kv, kv)]
    given = packed_attention.boundaries_of(lengths, "cuda")
    which = torch.repeat_interleave(torch.arange(count, device="cuda"), torch.tensor(lengths, device="cuda"))
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device="cuda").tril()
    mask = ((which[:, None] == which[None]) & causal)[None, None]
    module = torch.nn.Module()
    attend = torch.nn.functional.scaled_dot_product_attention

    def repeated(part: torch.Tensor) -> torch.Tensor:
        return part.repeat_interleave(heads // kv, dim=1)

    q, k, v = packed
    return {
        "count": count,
        "padded_length": length,
        "packed_tokens": tokens,
        "padded": _timed(lambda: attend(*padded, is_causal=True, enable_gqa=True)),
        "packed_by_kernel": _timed(lambda: packed_attention.packed_attention(module, q, k, v, None, **given)[0]),
        "packed_by_mask": _timed(lambda: attend(q, repeated(k), repeated(v), attn_mask=mask)),
    }


def _timed(act: Callable[[], torch.Tensor]) -> float:
    for _ in range(2):
        result = act()
        result.backward(torch.ones_like(result))
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(TIMED):
        result = act()
        result.backward(torch.ones_like(result))
    torch.cuda.synchronize()
    return round((time.perf_counter() - started) / TIMED, 6)
