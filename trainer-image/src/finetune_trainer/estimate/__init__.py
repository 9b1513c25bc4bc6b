"""What a training will need: peak memory and time, from shapes alone. docs/estimates.md has the derivation and how near
it comes to what was measured.

Memory = weights + gradients + optimizer (counted) + activations (tried without data) + output layer + runtime.
Time = floating point operations / rate + steps * overhead.
"""

from finetune_trainer.estimate.memory import memory, memory_bytes
from finetune_trainer.estimate.needs import Needs, Placed, Sharing, on_each
from finetune_trainer.estimate.shape import ModelShape, measure_shape
from finetune_trainer.estimate.time import estimate, step_seconds

__all__ = [
    "ModelShape",
    "Needs",
    "Placed",
    "Sharing",
    "estimate",
    "measure_shape",
    "memory",
    "memory_bytes",
    "on_each",
    "step_seconds",
]
