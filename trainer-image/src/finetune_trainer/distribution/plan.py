"""How a training is cut to its devices: strategy, examples of a forward pass, passes of a step.

Prepare asks with the devices that the job names, to tell what will be; Train asks with those that it has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune_api.distribution import DistributionSpec, Strategy
from finetune_api.status import ResolvedValues
from finetune_api.tasks import MethodType, Task
from finetune_trainer.distribution.batches import split
from finetune_trainer.distribution.sharding import Choice, candidates, choose
from finetune_trainer.estimate import ModelShape, Sharing, memory, on_each
from finetune_trainer.methods.kind import Precision

MICRO_TOKENS = 8_192  # a GPU is busy with so many tokens; more only costs memory
MAX_MICRO_GPU, MAX_MICRO_CPU = 32, 8
MEMORY_SHARE = 0.8  # of the memory: estimates are not exact, and allocators fragment
ASSUMED_GPU_BYTES = 24 * 2**30  # Prepare sees no GPU; 24 GiB is the smallest that data centers offer (L4, A10)


@dataclass(frozen=True, slots=True)
class Devices:
    """`processes` in all, each with `memory` bytes; None: not known to be limited."""

    processes: int
    gpu: bool
    memory: int | None


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained. `batch`: examples of an optimizer step; `length`: tokens of the longest example."""

    task: Task
    method: MethodType
    shape: ModelShape
    batch: int
    length: int
    precision: Precision


@dataclass(frozen=True, slots=True)
class Cut:
    """The result: strategy, and the examples of a forward pass at most."""

    choice: Choice
    micro: int


def cut(work: Workload, devices: Devices, wanted: DistributionSpec) -> Cut:
    """The fastest strategy with which one example fits, and then as many examples as fit. One example is taken even
    when the estimate says it is too much. Raises UserInputError (SpecInvalid)."""

    def fits(choice: Choice, rows: int) -> bool:
        if devices.memory is None:
            return True
        return device_bytes(work, rows, choice, devices.processes) <= MEMORY_SHARE * devices.memory

    found = candidates(wanted, devices.processes, work.task, work.method, work.shape.optimizer)
    choice = choose(found, lambda each: fits(each, 1))
    share = math.ceil(work.batch / devices.processes)
    most = min(share, MAX_MICRO_GPU if devices.gpu else MAX_MICRO_CPU, max(1, MICRO_TOKENS // work.length))
    rows = (rows for rows in range(most, 1, -1) if share % rows == 0 and fits(choice, rows))
    return Cut(choice, next(rows, 1))


def device_bytes(work: Workload, rows: int, choice: Choice, processes: int) -> int:
    """Peak memory of each device with `rows` examples in a forward pass."""
    needs = memory(work.shape, rows=rows, length=work.length, precision=work.precision)
    sharing = Sharing(choice.strategy.value) if choice.strategy in SHARED else Sharing.NOTHING
    return on_each(needs, sharing, processes, offload=choice.offloads).device


SHARED = {Strategy(sharing.value) for sharing in Sharing}


def applied(values: ResolvedValues, found: Cut, processes: int) -> ResolvedValues:
    """The resolved values with the cut of this many processes."""
    parts = split(values.batch_size, processes, found.micro)
    return values.model_copy(
        update={
            "micro_batch_size": parts.micro,
            "gradient_accumulation": parts.passes,
            "processes": processes,
            "strategy": found.choice.strategy,
            "offload": found.choice.offload,
        }
    )
