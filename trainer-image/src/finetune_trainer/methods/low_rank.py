"""What LoRA, QLoRA and DoRA share: PEFT's configuration, the heads that are kept whole, the adapter's files."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.conditions import FailureReason
from finetune_api.method import Initialization
from finetune_api.spec import MethodSpec
from finetune_api.status import ResolvedValues
from finetune_api.tasks import MethodType
from finetune_trainer.errors import UserInputError
from finetune_trainer.methods import proof
from finetune_trainer.methods.kind import Trained
from finetune_trainer.methods.proof import ADAPTER_CONFIG, ADAPTER_WEIGHTS

LINEAR = (torch.nn.Linear, Conv1D)
# Tasks with a head of their own, which PEFT keeps whole of its own accord, fresh or not.
PEFT_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
# PEFT 0.21's own class for this task forgets the segments (token_type_ids) on the way to the model, so it gets PEFT's
# plain one, which passes on all that it is given, and is told of the head.
PLAIN = "QUESTION_ANS"
# PEFT's words; True is its own "default".
INITIALIZATIONS: dict[Initialization, Any] = {
    Initialization.DEFAULT: True,
    Initialization.GAUSSIAN: "gaussian",
    Initialization.ORTHOGONAL: "orthogonal",
}


def lora_config(
    spec: MethodSpec,
    model: PreTrainedModel,
    *,
    peft_type: str = "CAUSAL_LM",
    rank: int | None = None,
    alpha: int | None = None,
    fresh: Collection[str] = (),
) -> LoraConfig:
    """LoRA on all linear layers but the output layer and the heads, unless the job names others.

    A head is trained whole: an adapter on random weights would be worthless on the next random ones. Raises
    UserInputError (SpecInvalid) when rank and initialisation do not go together.
    """
    rank = rank or spec.resolved_rank
    if spec.initialization is Initialization.ORTHOGONAL and rank % 2:
        raise UserInputError(
            f"method.initialization: orthogonal needs an even rank, and method.rank is {rank}",
            advice=f"set method.rank to {rank + 1}, or leave method.initialization out",
            reason=FailureReason.SPEC_INVALID,
        )
    heads = outermost(fresh, model)
    excluded = below([*heads, *PEFT_HEADS.get(peft_type, ())], model)
    kept = sorted({*heads, *PEFT_HEADS[PLAIN]}) if peft_type == PLAIN else heads
    return LoraConfig(
        r=rank,
        lora_alpha=alpha or spec.resolved_alpha,
        lora_dropout=float(spec.dropout or 0),
        target_modules=list(spec.target_modules) if spec.target_modules else all_linear(model),
        exclude_modules=excluded or None,
        modules_to_save=kept or None,
        use_rslora=bool(spec.rs_lora),
        init_lora_weights=INITIALIZATIONS[spec.initialization or Initialization.DEFAULT],
        use_dora=spec.type is MethodType.DORA,
        task_type=None if peft_type == PLAIN else peft_type,
    )


def all_linear(model: PreTrainedModel) -> str | list[str]:
    """What is adapted unless the job says otherwise: PEFT's word for all linear layers but the output layer, or their
    names where the word would take in experts, and the router that chooses among them, which are no layers."""
    experts = any(
        parameter.dim() == 3
        for part in model.modules()
        if not isinstance(part, _ConvNd)
        for parameter in part.parameters(recurse=False)
    )
    if not experts:
        return "all-linear"
    output = model.get_output_embeddings()
    return sorted(name for name, part in model.named_modules() if isinstance(part, LINEAR) and part is not output)


def add_adapter(
    model: PreTrainedModel,
    spec: MethodSpec,
    resolved: ResolvedValues,
    *,
    peft_type: str,
    fresh: Collection[str] = (),
) -> Any:
    """The model with fresh adapters in float32, and all else frozen. Raises ValueError when nothing matches."""
    rank, alpha = resolved.lora_rank, resolved.lora_alpha
    config = lora_config(spec, model, peft_type=peft_type, rank=rank, alpha=alpha, fresh=fresh)
    tuned = get_peft_model(model, config)
    for part in tuned.modules():
        if isinstance(part, ModulesToSaveWrapper):
            part.modules_to_save.float()  # PEFT does so with adapters only; bfloat16 would lose small updates
        if isinstance(part, LoraLayer):
            part.cast_input_dtype_enabled = casts_input(spec, model.dtype)
    return tuned


def casts_input(spec: MethodSpec, dtype: torch.dtype) -> bool:
    """Whether adapters on a base of this type take their input in float32, as PEFT has it.

    Training in bfloat16 goes under autocast, which casts it back at once: without the detour losses and gradients are
    the same to the bit, for a copy of the input and two kernels less in each layer. Dropout would draw other numbers,
    and DoRA would lose its norms.
    """
    return dtype is not torch.bfloat16 or spec.type is MethodType.DORA or bool(float(spec.dropout or 0))


def outermost(fresh: Collection[str], model: PreTrainedModel) -> list[str]:
    """The modules to keep whole for `fresh` ones: beside the body of the model its whole head, within the body (a
    pooler that the base was trained without) only the module itself."""
    body = model.base_model_prefix
    has_body = bool(body) and hasattr(model, body)
    heads = {name if has_body and name.startswith(f"{body}.") else name.partition(".")[0] for name in fresh}
    return sorted(name for name in heads if name and name != body)


def below(heads: Collection[str], model: PreTrainedModel) -> list[str]:
    """The linear layers that are, or lie in, one of the heads, which PEFT finds by the end of a name."""
    found = [name for name, _ in model.named_modules() for head in heads if name == head or name.endswith(f".{head}")]
    return sorted(
        name
        for name, part in model.named_modules()
        if isinstance(part, LINEAR) and any(name == head or name.startswith(f"{head}.") for head in found)
    )


def copy_adapter(checkpoint: Path, directory: Path) -> None:
    """Only these two files: optimizer and random states are pickles, and no one serves them."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copyfile(checkpoint / name, directory / name)


def verify_adapter(trained: Trained, directory: Path) -> None:
    """Raise ArtifactInvalidError unless the adapter is whole and, where the base is needed to tell, has moved."""
    proof.adapter_files(directory, trained.rank)
    if proof.keeps_heads(directory):
        base = trained.load(trained.base_dir, trained.dtype)
        proof.heads_kept(directory, base.fresh)
        proof.adapter_moved(proof.on_base(directory, base.model), directory, trained.dtype)
