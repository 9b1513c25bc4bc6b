"""Before a GPU is asked for: whether the training fits into the memory that there is, and which changes of the job
would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from finetune_api.distribution import MOST_PROCESSES, Strategy, admits
from finetune_api.run_config import RunConfig
from finetune_api.spec import MethodSpec
from finetune_api.tasks import MethodType, Task
from finetune_trainer.distribution.plan import Devices, Workload, device_bytes
from finetune_trainer.distribution.sharding import Choice
from finetune_trainer.estimate import memory
from finetune_trainer.estimate.fitting import COMFORTABLE, Remedy, Training, judge

LENGTH_STEP = 128  # tokens; as maxLength is resolved
PAIR = 2  # conversations of an example of Preference
SHORTEST = 256  # tokens; what is shorter is another training
# Methods that need less, the one that changes least first.
SMALLER = {
    MethodType.FULL: (MethodType.LORA, MethodType.QLORA),
    MethodType.LORA: (MethodType.QLORA,),
    MethodType.DORA: (MethodType.QLORA,),
    MethodType.QLORA: (),
}
MORE_DEVICES = tuple(count for count in (2, 4, 8, 16) if count <= MOST_PROCESSES)


def gpu_memory(config: RunConfig) -> int | None:
    """Bytes of a GPU: what the job or the platform says, or what this very process sees, as on a laptop."""
    if config.gpu_memory_bytes or not torch.cuda.is_available():
        return config.gpu_memory_bytes
    return int(torch.cuda.get_device_properties(0).total_memory)


def check_fit(config: RunConfig, work: Workload, choice: Choice, devices: Devices) -> list[str]:
    """Notes for the user. Raises UserInputError (SpecInvalid) when the training certainly does not fit."""
    needed = device_bytes(work, 1, choice, devices.processes)
    if devices.gpu and gpu_memory(config) is None:
        return [
            f"whether the training fits is not known, because the GPU's memory is not: it is expected to need "
            f"{needed / 2**30:.1f} GiB with one example in a forward pass; set compute.gpuMemory"
        ]
    if devices.memory is None:
        return []
    training = Training(
        needed,
        devices.memory,
        holder="a GPU" if devices.gpu else "a process",
        field="compute.gpuMemory" if devices.gpu else "compute.resources.limits.memory",
        needs=memory(work.shape, rows=1, length=work.length, precision=work.precision),
    )
    return judge(training, _remedies(work, choice, devices), refuses=devices.gpu)


def _remedies(work: Workload, choice: Choice, devices: Devices) -> Iterator[Remedy]:
    """The changes, the least one first. Each is told only if it suffices by itself, but for the last ones."""
    if work.shape.recomputes is False:
        saving = replace(work, shape=replace(work.shape, recomputes=True))
        yield Remedy(
            "hyperparameters.gradientCheckpointing Enabled", lambda: _needed(saving, choice, devices.processes)
        )
    if shorter := _shorter(work, choice, devices):
        tokens = shorter.length // (PAIR if work.task is Task.PREFERENCE else 1)
        yield Remedy(f"hyperparameters.maxLength {tokens}", lambda: _needed(shorter, choice, devices.processes))
    smaller = [found for kind in SMALLER[work.method] if (found := _by_method(work, kind))]
    for other in smaller:
        yield Remedy(f"method.type {other.method}", partial(_needed, other, choice, devices.processes))
    if devices.gpu:
        yield from _shared(work, devices, "")
        if smaller:
            yield from _shared(smaller[-1], devices, f"method.type {smaller[-1].method} and ")


def _shared(work: Workload, devices: Devices, change: str) -> Iterator[Remedy]:
    """The fewest GPUs that share out the weights and suffice, where the method may be shared out."""
    strategies = (each for each in (Strategy.ZERO3, Strategy.FSDP2) if admits(each, work.task, work.method))
    if strategy := next(strategies, None):
        for count in MORE_DEVICES:
            needed = _needed(work, Choice(strategy), count)
            if count > devices.processes and _comfortable(needed, devices):
                words = f"{change}compute.gpus {count} with distribution.strategy {strategy}"
                yield Remedy(words, partial(_needed, work, Choice(strategy), count))
                return


def _shorter(work: Workload, choice: Choice, devices: Devices) -> Workload | None:
    """The longest examples that fit, by halving what is between; None when even the shortest do not."""
    low, high = SHORTEST // LENGTH_STEP, (work.length - 1) // LENGTH_STEP
    fitting = None
    while low <= high:
        middle = (low + high) // 2
        tried = replace(work, length=middle * LENGTH_STEP)
        if _comfortable(_needed(tried, choice, devices.processes), devices):
            fitting, low = tried, middle + 1
        else:
            high = middle - 1
    return fitting


def _by_method(work: Workload, kind: MethodType) -> Workload | None:
    if work.shape.by_method is None:
        return None
    spec = work.shape.method
    other = spec.model_copy(update={"type": kind}) if spec.type.adapter else MethodSpec(type=kind)
    shape = work.shape.by_method(other)
    return replace(
        work,
        method=kind,
        shape=replace(shape, recomputes=work.shape.recomputes, optimizer=work.shape.optimizer),
    )


def _needed(work: Workload, choice: Choice, processes: int) -> int:
    return device_bytes(work, 1, choice, processes)


def _comfortable(needed: int, devices: Devices) -> bool:
    return devices.memory is not None and needed <= COMFORTABLE * devices.memory
