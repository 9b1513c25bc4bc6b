"""What transformers is told about the distribution."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune_api.distribution import Strategy
from finetune_trainer.distribution.batches import Split
from finetune_trainer.distribution.sharding import Choice
from finetune_trainer.training.device import Device


def distribution_arguments(
    choice: Choice, cut: Split, device: Device, *, clip: float, decoder: bool, recompute: bool
) -> dict[str, Any]:
    """Arguments of transformers.TrainingArguments. `clip`: norm of the gradients; `decoder`: the model has no part
    that its task may leave out; `recompute`: activations are computed again in the backward pass."""
    common: dict[str, Any] = {
        "per_device_train_batch_size": cut.micro,
        "gradient_accumulation_steps": cut.passes,
        "use_cpu": device.kind == "cpu",
        "gradient_checkpointing": recompute,
        "ddp_backend": "gloo" if device.kind == "cpu" else "nccl",
    }
    if choice.strategy is Strategy.NONE:
        del common["ddp_backend"]
    elif choice.strategy is Strategy.DDP:
        common["ddp_find_unused_parameters"] = not decoder
        # Activations that are computed again meet the gradients of one pass twice unless it is done this way.
        common["gradient_checkpointing_kwargs"] = {"use_reentrant": False} if recompute else None
    elif choice.strategy is Strategy.FSDP2:
        # Recomputing is FSDP's own there: done by the model it would gather every layer twice.
        common |= {"fsdp": True, "fsdp_config": _fsdp(recompute), "gradient_checkpointing": False}
    else:
        common |= {"deepspeed": deepspeed_config(choice, cut, device, clip=clip)}
    return common


@contextmanager
def dividing(arguments: Mapping[str, Any]) -> Iterator[None]:
    """While a model is loaded: under ZeRO-3 and FSDP2 no process takes all weights into its memory for good."""
    if "deepspeed" in arguments:
        import deepspeed.ops
        from transformers.integrations import HfDeepSpeedConfig

        # No operation of its own is compiled: there is no compiler in the image. On a CPU it would, for its messages.
        deepspeed.ops.__compatible_ops__ = {}
        deepspeed.init_distributed(dist_backend=arguments["ddp_backend"], auto_mpi_discovery=False)
        told = HfDeepSpeedConfig(arguments["deepspeed"])  # transformers finds it as long as it lives
        yield
        del told
    elif "fsdp" in arguments:
        os.environ |= FSDP_LOADING
        try:
            yield
        finally:
            for name in FSDP_LOADING:
                del os.environ[name]
    else:
        yield


def whole_again() -> None:
    """After the processes have parted: a model that is loaded now is loaded whole."""
    unset_hf_deepspeed_config()
    for name in FSDP_LOADING:
        os.environ.pop(name, None)


def accelerate_on_cpu(arguments: TrainingArguments) -> None:
    """Accelerate divides a model by FSDP on accelerators only; told that it has one, it does the same on processors."""
    if arguments.fsdp and arguments.device.type == "cpu":
        PartialState().distributed_type = DistributedType.MULTI_GPU


FSDP_LOADING = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}


def _fsdp(recompute: bool) -> dict[str, Any]:
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # a unit is a layer
        "reshard_after_forward": True,
        "cpu_ram_efficient_loading": True,  # the first process reads the weights, and hands on their parts
        "state_dict_type": "FULL_STATE_DICT",  # a checkpoint is a whole model, for any number of processes
        "activation_checkpointing": recompute,
    }


def deepspeed_config(choice: Choice, cut: Split, device: Device, *, clip: float) -> dict[str, Any]:
    """DeepSpeed's settings, complete: with ZeRO-3 the model is loaded by them before there are arguments."""
    stage = choice.strategy.zero_stage
    on_gpu = device.kind == "cuda"
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": on_gpu}
    memory = {"device": "cpu", "pin_memory": on_gpu}
    if choice.offloads:
        zero["offload_optimizer"] = memory
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # a checkpoint has the whole model or adapter
        if choice.offloads:
            zero["offload_param"] = memory
    return {
        "zero_optimization": zero,
        # PyTorch's AdamW on offloaded state: DeepSpeed's own is compiled where it runs, and the image has no compiler.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": cut.micro,
        "gradient_accumulation_steps": cut.passes,
        "train_batch_size": cut.micro * cut.passes * cut.processes,
        "gradient_clipping": clip,
        "bf16": {"enabled": device.precision == "bfloat16"},
    }
