"""QLoRA: LoRA on a base in 4 bits (Dettmers et al., arXiv 2305.14314).

The base is quantised while it is loaded, and in memory only. The adapter is served on the base as it came.

PEFT's prepare_model_for_kbit_training is not used. What it does beside freezing (which PEFT does anyway) is to cast
embeddings, norms and output layer to float32, which doubles their memory and makes every activation float32; here
they stay what they are for LoRA, so that LoRA and QLoRA differ in nothing but how the weights lie in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear, LoraLayer
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.method import Initialization
from finetune_api.spec import MethodSpec
from finetune_api.status import ResolvedValues
from finetune_api.tasks import MethodType
from finetune_trainer.methods.kind import BYTES, FLOAT32, Footprint, Form, Precision, Sizes, Trained
from finetune_trainer.methods.low_rank import add_adapter, copy_adapter, verify_adapter
from finetune_trainer.training.device import Device

BLOCK, SCALE_BLOCK = 64, 256  # weights that share a scale; scales that share one when they are quantised too


class QLora:
    type = MethodType.QLORA
    learning_rate = 2e-4
    operations = 4
    kept_outputs = 0

    def load_options(self, spec: MethodSpec, device: Device, skeleton: Callable[[], PreTrainedModel]) -> dict[str, Any]:
        return {
            "dtype": device.dtype,
            "device_map": {"": device.place},
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=doubly(spec),
                bnb_4bit_compute_dtype=device.dtype,
                llm_int8_skip_modules=kept_whole(skeleton()),
            ),
        }

    def wrap(
        self,
        model: PreTrainedModel,
        spec: MethodSpec,
        resolved: ResolvedValues,
        *,
        peft_type: str,
        fresh: Collection[str] = (),
    ) -> Any:
        trainable_on_cpu(model)
        # PEFT makes orthogonal matrices in the type of the base's weights, which are bytes here.
        orthogonal = spec.initialization is Initialization.ORTHOGONAL
        start = spec.model_copy(update={"initialization": None}) if orthogonal else spec
        tuned = add_adapter(model, start, resolved, peft_type=peft_type, fresh=fresh)
        if orthogonal:
            begin_orthogonal(tuned)
        # TRL casts the adapters of a model that says so to bfloat16, also on a CPU that computes in float32. There
        # the small updates of the last steps would be lost (trl#7268).
        tuned.is_loaded_in_4bit = False
        return tuned

    def quantised(self, skeleton: PreTrainedModel) -> int:
        kept = tuple(kept_whole(skeleton))
        return sum(
            part.weight.numel()
            for name, part in skeleton.named_modules()
            if (type(part) is torch.nn.Linear or isinstance(part, Conv1D))
            and not any(name == head or name.startswith(f"{head}.") for head in kept)
        )

    def footprint(self, sizes: Sizes, spec: MethodSpec, precision: Precision) -> Footprint:
        rest = (sizes.parameters - sizes.quantised) * BYTES[precision]
        packed = round(sizes.quantised * bytes_per_weight(doubly(spec)))
        return Footprint.of(frozen=packed + rest, trainable=sizes.trainable)

    def finish(self, trained: Trained, directory: Path) -> Form:
        copy_adapter(trained.checkpoint, directory)
        return "Adapter"

    def verify(self, trained: Trained, directory: Path, form: Form) -> None:
        verify_adapter(trained, directory)


def doubly(spec: MethodSpec) -> bool:
    return spec.double_quantization is not False


def bytes_per_weight(double: bool) -> float:
    """4 bits and a float32 scale for each block; doubly quantised one byte for it, and a float32 for 256 of them."""
    return 0.5 + ((1 + FLOAT32 / SCALE_BLOCK) if double else FLOAT32) / BLOCK


def kept_whole(model: PreTrainedModel) -> list[str]:
    """Modules that are not quantised: the output layer, and heads, which may be new and are then trained.

    transformers' own rule goes by the last parameter's name, and so quantises a head that has a bias.
    """
    body = model.base_model_prefix
    heads = {name for name, _ in model.named_children() if name != body} if body and hasattr(model, body) else set()
    output = model.get_output_embeddings()
    named = {name for name, part in model.named_modules() if part is output or name.rpartition(".")[2] == "pooler"}
    return sorted(heads | named)


def begin_orthogonal(tuned: PeftModel) -> None:
    """Let PEFT begin adapters of the same sizes on layers that are not quantised, and take theirs."""
    config = tuned.peft_config["default"]
    config.init_lora_weights = "orthogonal"
    for part in tuned.modules():
        if isinstance(part, LoraLayer):
            plain = torch.nn.Linear(part.in_features, part.out_features, bias=False)
            begun = Linear(plain, "default", config=config, r=config.r, lora_alpha=config.lora_alpha)
            for matrix in ("lora_A", "lora_B"):
                getattr(part, matrix).load_state_dict(getattr(begun, matrix).state_dict())


def trainable_on_cpu(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing the weights anew at the first evaluation.

    On a CPU with AVX-512 bfloat16 its layers do so when called without a gradient: for good, for sizes in multiples
    of 32 only, in bfloat16, and by a product that has no gradient. Training would go on without a word, with nothing
    reaching the layers below.
    """
    from bitsandbytes.nn.modules import Linear4bit  # no other method needs it

    for part in model.modules():
        if isinstance(part, Linear4bit):
            part.support_avx512bf16_for_cpu = False
