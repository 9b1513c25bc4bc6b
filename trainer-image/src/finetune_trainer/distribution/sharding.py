"""Which strategies come into question, and which of them `auto` takes.

`auto` takes the first that fits, in the order in which Hugging Face's guide ranks them by speed (transformers,
"DeepSpeed", "Select a ZeRO stage"): DDP, ZeRO-1, ZeRO-2, ZeRO-2 with offload, ZeRO-3, ZeRO-3 with offload. FSDP2 does
what ZeRO-3 does, and is there for who wants it, or has no DeepSpeed. What each device holds is `estimate/needs.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.conditions import FailureReason
from finetune_api.distribution import DistributionSpec, Offload, Strategy, admits
from finetune_api.optimization import Optimizer
from finetune_api.tasks import MethodType, Task
from finetune_trainer.errors import UserInputError


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy, and whether the optimizer's state lies in the pod's memory."""

    strategy: Strategy = Strategy.NONE
    offload: Offload = Offload.NONE

    @property
    def offloads(self) -> bool:
        return self.offload is Offload.CPU


ALONE = Choice()
LADDER = (
    Choice(Strategy.DDP),
    Choice(Strategy.ZERO1),
    Choice(Strategy.ZERO2),
    Choice(Strategy.ZERO2, Offload.CPU),
    Choice(Strategy.ZERO3),
    Choice(Strategy.ZERO3, Offload.CPU),
    Choice(Strategy.FSDP2),
)


def candidates(
    wanted: DistributionSpec, processes: int, task: Task, method: MethodType, optimizer: Optimizer = Optimizer.AUTO
) -> Iterator[Choice]:
    """What may be taken, the fastest first; never empty. Raises UserInputError (SpecInvalid) when what the job names
    cannot be had here."""
    if processes == 1:
        yield ALONE
        return
    installed = importlib.util.find_spec("deepspeed") is not None
    if wanted.strategy.zero_stage and not installed:
        raise UserInputError(
            f"compute.distribution.strategy {wanted.strategy}: DeepSpeed is not installed here",
            advice="pip install 'finetune-trainer[deepspeed]', or set strategy to auto, DDP or FSDP2",
            reason=FailureReason.SPEC_INVALID,
        )
    for choice in _named(wanted):
        if admits(choice.strategy, task, method, optimizer) and (installed or not choice.strategy.zero_stage):
            yield choice


def _named(wanted: DistributionSpec) -> Iterator[Choice]:
    if wanted.strategy in (Strategy.AUTO, Strategy.NONE):  # None with several processes is refused at admission
        yield from LADDER
        return
    if wanted.offload is not Offload.CPU:
        yield Choice(wanted.strategy)
    if wanted.offload is Offload.CPU or (wanted.offload is Offload.AUTO and wanted.strategy.zero_stage):
        yield Choice(wanted.strategy, Offload.CPU)


def choose(found: Iterable[Choice], fits: Callable[[Choice], bool]) -> Choice:
    """The first that fits; when none does, the last one with offload, which needs least, or the last."""
    tried = []
    for choice in found:
        if fits(choice):
            return choice
        tried.append(choice)
    return next((choice for choice in reversed(tried) if choice.offloads), tried[-1])


def elements(parameter: Any) -> int:
    """How many numbers a parameter has. Where DeepSpeed has divided it, its tensor is empty."""
    return int(getattr(parameter, "ds_numel", 0) or parameter.numel())
