"""The estimate against memory that others measured and published. docs/estimates.md has the same table in words.

What a source does otherwise than our trainer is said once a source, and nothing is fitted to a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_trainer.estimate import Needs, Sharing, on_each
from finetune_trainer.estimate.activations import held_bytes
from finetune_trainer.methods.qlora import bytes_per_weight

WITHIN = 0.20
GB, GIB = 10**9, 2**30
LLAMA = {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192}
LLAMA2 = {**LLAMA, "vocab_size": 32000, "num_key_value_heads": 32, "num_attention_heads": 32}


def llama(width: int, inner: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**LLAMA, **sizes, "num_attention_heads": heads, "num_key_value_heads": kv, **more}


MODELS = {
    "Llama-3.2-3B": llama(3072, 8192, 28, 24, 8, tie_word_embeddings=True),
    "Llama-3.1-8B": llama(4096, 14336, 32, 32, 8),
    "Llama-3.1-70B": llama(8192, 28672, 80, 64, 8),
    "Llama-2-7B": llama(4096, 11008, 32, 32, 32, vocab_size=32000),
    "Llama-2-13B": llama(5120, 13824, 40, 40, 40, vocab_size=32000),
    "Llama-2-70B": llama(8192, 28672, 80, 64, 8, vocab_size=32000),
    "phi-1.5": {
        "model_type": "phi",
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
    },
    "StableLM-Alpha-3B": {
        "model_type": "gpt_neox",
        "vocab_size": 50688,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
}
ATTENTION, MLP = ["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Source:
    """How others train. Bytes of a trained weight, of its gradient and of its optimizer's state; bytes that are there
    for each score of the vocabulary at the loss; GB beside PyTorch's tensors, where they were measured too."""

    weight: int
    gradient: int
    moments: int
    score: float
    autocast: bool = False
    beside: float = 0.0


# torchtune: everything in bfloat16, tensors alone (max_memory_allocated), no accumulation. The loss at first as
# transformers has it (scores in bfloat16, their log-softmax and its gradient in float32), later in 8 chunks, compiled:
# one chunk at a time, in bfloat16 with a float32 copy and a gradient.
TUNE_WHOLE = Source(2, 2, 4, score=10)
TUNE = Source(2, 2, 4, score=8 / 8)
# PEFT's benchmark: a bfloat16 base, adapters in float32, no autocast, the loss of transformers; the allocator's peak.
# Assumed: a batch of 4 rows of the maximum, 768 tokens.
BENCH = Source(4, 4, 8, score=10)
BENCH_FULL = Source(2, 2, 4, score=10)
# LitGPT: everything in bfloat16, tensors alone, the loss in chunks of 128 tokens of scores that are all there, with
# their gradient. Assumed: all rows of the longest micro batch are as long as the longest one.
LIT = Source(2, 2, 4, score=4)
# PEFT's guides: the loss of transformers, and what nvidia-smi shows: 1 GB of context and libraries beside the tensors.
GUIDE = Source(4, 4, 8, score=10, autocast=True, beside=1.0)


@dataclass(frozen=True)
class Row:
    model: str
    source: Source
    published: float  # bytes a device
    rows: int
    length: int
    rank: int = 0  # 0: all weights are trained
    targets: Any = "all-linear"
    recompute: bool = False
    quantised: bool = False
    double: bool = True
    dora: bool = False
    sharing: Sharing = Sharing.NOTHING
    devices: int = 1
    inputs_offloaded: bool = False  # what recomputation begins with lies in the machine's memory

    @property
    def name(self) -> str:
        method = ("QLoRA" if self.quantised else "DoRA" if self.dora else "LoRA") if self.rank else "Full"
        return f"{self.model} {method} {self.rows}x{self.length} {self.devices}"


ROWS = (
    # torchtune's README at a9ea6d5: Llama 3.2 3B on an A100, 2 rows of 4,096 packed tokens. Assumed: rank 64.
    Row("Llama-3.2-3B", TUNE_WHOLE, 60.0 * GIB, 2, 4096),
    Row("Llama-3.2-3B", TUNE, 24.9 * GIB, 2, 4096, recompute=True),
    Row("Llama-3.2-3B", TUNE, 8.5 * GIB, 2, 4096, 64, recompute=True, inputs_offloaded=True),
    Row("Llama-3.2-3B", TUNE, 4.6 * GIB, 2, 4096, 64, recompute=True, inputs_offloaded=True, quantised=True),
    # The same README: 2 rows of 2,048. Assumed: recomputation, as the recipes have it.
    Row("Llama-3.1-8B", TUNE, 16.2 * GIB, 2, 2048, 8, recompute=True),
    Row("Llama-3.1-8B", TUNE, 7.4 * GIB, 2, 2048, 8, recompute=True, quantised=True),
    Row("Llama-3.1-70B", TUNE, 27.6 * GIB, 2, 2048, 16, recompute=True, sharing=Sharing.FSDP2, devices=8),
    # PEFT's method_comparison/MetaMathQA/results (json), on an L40S.
    Row("Llama-3.2-3B", BENCH, 22_273_851_392, 4, 768, rank=32, targets=ATTENTION),
    Row("Llama-3.2-3B", BENCH, 24_712_839_168, 4, 768, rank=10, targets=MLP),
    Row("Llama-3.2-3B", BENCH, 24_540_872_704, 4, 768, rank=32, targets=ATTENTION, dora=True),
    Row("Llama-3.2-3B", BENCH_FULL, 37_241_225_216, 4, 768),
    # LitGPT's tutorials/resource-tables.md: LoRA of rank 8 on queries and values, on an A100.
    Row("Llama-2-7B", LIT, 21.30 * GB, 1, 1304, rank=8, targets=ATTENTION),
    Row("Llama-2-7B", LIT, 29.07 * GB, 2, 1304, rank=8, targets=ATTENTION),
    Row("Llama-2-13B", LIT, 38.12 * GB, 1, 1304, rank=8, targets=ATTENTION),
    Row("phi-1.5", LIT, 4.82 * GB, 1, 1044, rank=8, targets=ATTENTION),
    Row("phi-1.5", LIT, 6.76 * GB, 2, 1044, rank=8, targets=ATTENTION),
    Row("phi-1.5", LIT, 10.68 * GB, 4, 1044, rank=8, targets=ATTENTION),
    Row("StableLM-Alpha-3B", LIT, 9.69 * GB, 1, 1034, rank=8, targets=["query_key_value"]),
    Row("StableLM-Alpha-3B", LIT, 12.10 * GB, 2, 1034, rank=8, targets=["query_key_value"]),
    Row("StableLM-Alpha-3B", LIT, 16.92 * GB, 4, 1034, rank=8, targets=["query_key_value"]),
    # PEFT's guides for DeepSpeed and FSDP: Llama 2 70B, rows of 2,048 packed tokens.
    Row("Llama-2-70B", GUIDE, 64 * GB, 8, 2048, rank=8, recompute=True, sharing=Sharing.ZERO3, devices=8),
    Row("Llama-2-70B", GUIDE, 36.6 * GB, 2, 2048, 8, recompute=True, quantised=True, sharing=Sharing.ZERO3, devices=2),
    Row("Llama-2-70B", GUIDE, 35.6 * GB, 2, 2048, 8, recompute=True, quantised=True, sharing=Sharing.FSDP2, devices=2),
)


def needs_of(row: Row) -> Needs:
    """By the estimator's own parts, with the bytes that the source has. Two models of few layers are tried, and what
    another layer adds is added as often as there are more: layers of one kind, and a test must not take minutes."""
    few, more = (_tried(row, layers) for layers in (4, 6))
    layers = int(MODELS[row.model]["num_hidden_layers"])
    values = {
        name: getattr(few, name) + (getattr(more, name) - getattr(few, name)) // 2 * (layers - 4)
        for name in few.__slots__
    }
    # The loss is computed before the backward pass: what it takes counts where that is above the peak of the passes.
    values["output"] = max(0, values["output"] - values["activations"])
    return Needs(**{**values, "block": (values["frozen"] + values["trained"]) // layers})


def _tried(row: Row, layers: int) -> Needs:
    fields = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **MODELS[row.model], "num_hidden_layers": layers}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    output = base.get_output_embeddings()
    linear = [
        part.weight.numel() for part in base.modules() if isinstance(part, torch.nn.Linear) and part is not output
    ]
    frozen = sum(parameter.numel() for parameter in base.parameters()) if row.rank else 0
    model = base
    if row.rank:
        settings = LoraConfig(r=row.rank, target_modules=row.targets, use_dora=row.dora, task_type="CAUSAL_LM")
        settings.init_lora_weights = False
        model = get_peft_model(base, settings, autocast_adapter_dtype=row.source.weight == 4)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    packed = sum(linear) if row.quantised else 0
    body = getattr(base, base.base_model_prefix)

    def run(rows: int, length: int) -> torch.Tensor:
        ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
        states: torch.Tensor = body(input_ids=ids, use_cache=False)[0]
        return states

    passes = held_bytes(
        model, base, run, row.rows, row.length, half=row.source.autocast, recompute=row.recompute, accumulates=False
    )
    gradients = trained * row.source.gradient
    kept = row.rows * row.length * config.hidden_size * 2 * layers if row.inputs_offloaded else 0
    return Needs(
        frozen=round(packed * bytes_per_weight(row.double)) + (frozen - packed) * 2,
        trained=trained * row.source.weight,
        gradients=gradients,
        optimizer=trained * row.source.moments,
        activations=round(passes.peak) - gradients - kept + (max(linear) * 2 if row.quantised else 0),
        output=round(passes.between - gradients - kept + row.rows * row.length * config.vocab_size * row.source.score),
        runtime=round(row.source.beside * GB),
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_memory_is_within_a_fifth_of_what_was_published(row: Row) -> None:
    found = on_each(needs_of(row), row.sharing, row.devices).device
    assert found == pytest.approx(row.published, rel=WITHIN)
