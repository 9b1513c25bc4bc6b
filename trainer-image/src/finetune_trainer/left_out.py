"""Libraries that others import wherever they are installed, and that a stage has no use for: half of its start.

TRL imports Weights & Biases, Accelerate asks the model whether it is DeepSpeed's and imports that for it, DeepSpeed
imports MLflow, PEFT imports bitsandbytes, and that PyTorch's compiler. None of them has a switch. None in `sys.modules`
is Python's own word for a module that is not there: importing it raises ModuleNotFoundError, `find_spec` finds nothing
(https://docs.python.org/3/reference/import.html#the-module-cache). What is installed for the metadata stays in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from finetune_api.conditions import Stage
from finetune_api.optimization import Optimizer
from finetune_api.run_config import RunConfig, ServedRun
from finetune_api.tasks import MethodType
from finetune_trainer.distribution.environment import GANG

TRACKERS = ("wandb", "mlflow")
PLAIN = (Optimizer.AUTO, Optimizer.ADAMW, Optimizer.ADAMW_FUSED, Optimizer.ADAFACTOR)  # not bitsandbytes' work


def unused(stage: Stage, config: ServedRun, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the libraries that this stage of this run has no use for.

    Package tells the trackers. In 4 bits, and with optimizers of bitsandbytes, Train works alone: every other stage
    loads weights as they came. DeepSpeed divides among several processes; Prepare looks whether it is installed.
    """
    names = list(TRACKERS) if stage is not Stage.PACKAGE else []
    if not (stage is Stage.TRAIN and isinstance(config, RunConfig) and _is_packed(config)):
        names.append("bitsandbytes")
    if stage is Stage.TRAIN and GANG not in environment:
        names.append("deepspeed")
    return names


def _is_packed(config: RunConfig) -> bool:
    return config.method.type is MethodType.QLORA or config.hyperparameters.optimizer not in PLAIN


@contextmanager
def without(names: Iterable[str]) -> Iterator[None]:
    """As if these libraries were not installed; one that was imported before stays."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]  # None is allowed, and means "not there"
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
