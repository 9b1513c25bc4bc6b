"""The training cut to the devices that it really has."""

from __future__ import annotations

from dataclasses import replace

import torch

from finetune_api.optimization import Optimizer
from finetune_api.status import ResolvedValues
from finetune_api.tasks import Task
from finetune_trainer.context import StageContext
from finetune_trainer.distribution import environment, halving
from finetune_trainer.distribution.group import Group
from finetune_trainer.distribution.plan import Cut, Devices, Workload, applied, cut
from finetune_trainer.distribution.sharding import ALONE
from finetune_trainer.estimate import measure_shape
from finetune_trainer.methods.continued import of_same_form
from finetune_trainer.resolve import PAIR
from finetune_trainer.training.device import Device
from finetune_trainer.training.inputs import Prepared, load_tokenizer


def cut_to_devices(
    context: StageContext, prepared: Prepared, device: Device, group: Group
) -> tuple[ResolvedValues, list[str]]:
    """The resolved values with strategy and split, the same in all processes, and notes for the user. One process on
    a CPU takes what Prepare said: it knew as much."""
    values, size = prepared.resolved, group.place.size
    found = Cut(ALONE, values.micro_batch_size)
    if device.kind == "cuda" or size > 1:
        found = group.of_first(_cut(context, prepared, device, group) if group.place.first else found)
    notes = []
    if smaller := group.of_first(halving.halved(context.run_dir) if size > 1 else None):
        found = Cut(found.choice, min(found.micro, smaller.micro_batch_size))
        notes.append(smaller.note)
    if values.batch_size < size:
        notes.append(
            f"an optimizer step has {values.batch_size} examples for {size} processes, so that {size} can never all "
            f"be busy: raise hyperparameters.batchSize to at least {size}, or take fewer"
        )
    return applied(values, found, size), notes


def _cut(context: StageContext, prepared: Prepared, device: Device, group: Group) -> Cut:
    config, values = context.config, prepared.resolved
    tokenizer = load_tokenizer(prepared.base_dir)
    method = config.method if context.before is None else of_same_form(config.method, context.before)
    shape = measure_shape(prepared.base_dir, prepared.kind, method, tokenizer, config.base_model.told)
    shape = replace(
        shape,
        recomputes=values.gradient_checkpointing,
        optimizer=values.optimizer or Optimizer.ADAMW,
    )
    rows = prepared.rows("train")
    longest = max(map(len, rows["input_ids"])) * (PAIR if config.task is Task.PREFERENCE else 1)
    work = Workload(config.task, config.method.type, shape, values.batch_size, longest, device.precision)
    on_gpu = device.kind == "cuda"
    devices = Devices(group.place.size, on_gpu, _memory(context, device, group.place.local_size))
    found = cut(work, devices, environment.wanted(config.distribution))
    return found if on_gpu else Cut(found.choice, min(found.micro, values.micro_batch_size))


def _memory(context: StageContext, device: Device, processes: int) -> int | None:
    """Bytes of this process's device; on a CPU its part of the pod's limit."""
    if device.kind == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    limit = context.config.memory_limit_bytes
    return limit if limit is None else limit // processes
