"""How a training is spread over processes, and what goes together: a table for admission, `auto` and documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import Field

from finetune_api.base import ApiModel, Named, Rule
from finetune_api.optimization import Optimizer
from finetune_api.tasks import MethodType, Task

# Of one pod: the largest servers have 16 devices (DGX-2, p2.16xlarge), most have 8.
MOST_PROCESSES = 16


class Strategy(Named):
    """`NONE` is one process."""

    AUTO = "auto"
    NONE = "None"
    DDP = "DDP"
    ZERO1 = "ZeRO1"
    ZERO2 = "ZeRO2"
    ZERO3 = "ZeRO3"
    FSDP2 = "FSDP2"

    @property
    def zero_stage(self) -> int:
        """1 to 3 of DeepSpeed's ZeRO, 0 of all others."""
        return int(self.value[-1]) if self.value.startswith("ZeRO") else 0

    @property
    def divides_state(self) -> bool:
        """Whether the optimizer's state is divided among the processes."""
        return self not in (Strategy.AUTO, Strategy.NONE, Strategy.DDP)

    @property
    def shards_weights(self) -> bool:
        """Whether no process holds all weights."""
        return self in (Strategy.ZERO3, Strategy.FSDP2)


class Offload(Named):
    AUTO = "auto"
    NONE = "None"
    CPU = "CPU"


@dataclass(frozen=True, slots=True)
class StrategyRules:
    """`divides`: what of the training each process holds only a part of. `tasks`, `methods`: what it is proven with.
    `why`: the reason in a refusal of the others."""

    divides: str
    tasks: tuple[Task, ...] = tuple(Task)
    methods: tuple[MethodType, ...] = tuple(MethodType)
    offloads: bool = False
    why: str = ""


_TEXT = (Task.CHAT, Task.COMPLETION)
_PLAIN = (MethodType.LORA, MethodType.FULL)
_DIVIDED = "it divides the weights, which only Chat and Completion with LoRA or Full are proven with"
STRATEGIES: Mapping[Strategy, StrategyRules] = {
    Strategy.NONE: StrategyRules("nothing: one process"),
    Strategy.DDP: StrategyRules("the batch"),
    Strategy.ZERO1: StrategyRules("the batch, the optimizer's state", offloads=True),
    Strategy.ZERO2: StrategyRules("the batch, the optimizer's state, the gradients", offloads=True),
    Strategy.ZERO3: StrategyRules(
        "the batch, the optimizer's state, the gradients, the weights", _TEXT, _PLAIN, offloads=True, why=_DIVIDED
    ),
    Strategy.FSDP2: StrategyRules(
        "the batch, the optimizer's state, the gradients, the weights", _TEXT, _PLAIN, why=_DIVIDED
    ),
}
OFFLOADING = tuple(strategy for strategy, rules in STRATEGIES.items() if rules.offloads)
_OFFLOADING = [strategy.value for strategy in OFFLOADING]


class DistributionSpec(ApiModel):
    """How the training is spread over the processes. The result does not depend on it, so a change starts no run."""

    strategy: Strategy = Field(
        default=Strategy.AUTO,
        description="auto: the fastest that fits into the devices' memory. None: one process. DDP: each process has "
        "the whole model and a part of the batch. ZeRO1, ZeRO2, ZeRO3 (DeepSpeed): each has in addition only a part of "
        "the optimizer's state; of the gradients too; of the weights too. FSDP2 (PyTorch): as ZeRO3.",
    )
    offload: Offload = Field(
        default=Offload.AUTO,
        description="CPU: ZeRO keeps the optimizer's state, with ZeRO3 the weights too, in the pod's memory; slower. "
        "auto: where it does not fit otherwise.",
    )
    rules: ClassVar = (
        Rule(
            f"!has(self.offload) || self.offload != 'CPU' || self.strategy in {_OFFLOADING}",
            "compute.distribution.offload: only ZeRO offloads; set strategy to ZeRO1, ZeRO2 or ZeRO3, or remove it",
            lambda wanted: wanted.offload is not Offload.CPU or wanted.strategy in OFFLOADING,
        ),
    )


class _Compute(Protocol):
    @property
    def gpus(self) -> int: ...

    @property
    def processes(self) -> int | None: ...

    @property
    def nodes(self) -> int: ...


def processes_of(compute: _Compute) -> int:
    """Training processes of a pod: one a GPU; on the CPU as many as asked for."""
    return compute.gpus or compute.processes or 1


def _all(compute: _Compute) -> int:
    return processes_of(compute) * compute.nodes


_PROCESSES = "(self.gpus > 0 ? self.gpus : (has(self.processes) ? self.processes : 1))"
_ALL = f"{_PROCESSES} * self.nodes"
# Defaults of objects are checked before what is in them has its own.
_UNSAID = "!has(self.distribution) || !has(self.distribution.strategy) || self.distribution.strategy == 'auto'"
COMPUTE_RULES = (
    Rule(
        "!has(self.processes) || self.gpus == 0",
        "compute.processes: with GPUs there is one process a GPU; remove it, or set gpus to 0",
        lambda compute: compute.processes is None or compute.gpus == 0,
    ),
    Rule(
        f"self.distribution.strategy != 'None' || {_ALL} == 1",
        "compute.distribution.strategy: None is one process, and there are several; set it to auto, or gpus or "
        "processes to 1",
        lambda compute: (
            compute.distribution.strategy is not Strategy.NONE or processes_of(compute) * compute.nodes == 1
        ),
        unless=_UNSAID,
    ),
    Rule(
        f"self.distribution.strategy == 'None' || {_ALL} > 1",
        "compute.distribution.strategy: one process has nothing to distribute; set it to auto, or raise gpus or "
        "processes",
        lambda compute: compute.distribution.strategy in (Strategy.AUTO, Strategy.NONE) or _all(compute) > 1,
        unless=_UNSAID,
    ),
)


# Others keep a row and a column of a whole matrix, or blocks and pages of bitsandbytes' own.
DIVISIBLE = (Optimizer.AUTO, Optimizer.ADAMW, Optimizer.ADAMW_FUSED)
_UNDIVIDED = (
    f"!(self.compute.distribution.strategy in {[strategy.value for strategy in Strategy if strategy.divides_state]})"
)


def spec_rules() -> Iterator[Rule]:
    """Optimizers, tasks and methods that a strategy is not for."""
    yield Rule(
        f"self.hyperparameters.optimizer in {[optimizer.value for optimizer in DIVISIBLE]}",
        "hyperparameters.optimizer: ZeRO and FSDP2 divide the state of AdamW and AdamWFused only; use one of them, or "
        "compute.distribution.strategy DDP",
        lambda spec: (
            not spec.compute.distribution.strategy.divides_state or spec.hyperparameters.optimizer in DIVISIBLE
        ),
        unless=_UNDIVIDED,
    )
    for strategy, rules in STRATEGIES.items():
        if rules.why:
            yield _only(strategy, rules)


def _only(strategy: Strategy, rules: StrategyRules) -> Rule:
    tasks, methods = ([word.value for word in words] for words in (rules.tasks, rules.methods))

    def holds(spec: Any) -> bool:
        return spec.compute.distribution.strategy is not strategy or admits(strategy, spec.task, spec.method.type)

    other = f"self.compute.distribution.strategy != '{strategy}'"
    return Rule(
        f"{other} || (self.task in {tasks} && self.method.type in {methods})",
        f"compute.distribution.strategy: {strategy} is not for this task and method: {rules.why}; use auto, DDP or "
        "ZeRO2",
        holds,
        unless=_UNDIVIDED,
    )


def admits(strategy: Strategy, task: Task, method: MethodType, optimizer: Optimizer = Optimizer.AUTO) -> bool:
    """Whether the strategy is proven with the task and the method, and can divide the optimizer's state."""
    rules = STRATEGIES[strategy]
    divides = not strategy.divides_state or optimizer in DIVISIBLE
    return task in rules.tasks and method in rules.methods and divides
