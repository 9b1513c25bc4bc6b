"""Bytes of a training step by what they are for, and where the devices that share the work hold them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

# DeepSpeed's defaults, in elements: what it reduces gradients in, and at stage 3 keeps gathered or fetches ahead
# (deepspeed/runtime/zero/config.py: reduce_bucket_size, prefetch_bucket_size, max_live_parameters).
REDUCE_BUCKET = 500_000_000
PREFETCH_BUCKET = 50_000_000
MAX_LIVE = 1_000_000_000
HALF = 2  # bytes of a bfloat16


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes at the peak of a step on one device that does it alone.

    `frozen` and `trained` are weights as they lie in memory, `block` those of one layer as they are computed with: what
    is gathered at a time where weights are shared out. `activations` includes what the backward pass needs for a
    moment; `output`, scores of the vocabulary and the loss, is what they take above that.
    """

    frozen: int = 0
    trained: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    output: int = 0
    runtime: int = 0
    block: int = 0

    @property
    def total(self) -> int:
        held = self.frozen + self.trained + self.gradients + self.optimizer
        return held + self.activations + self.output + self.runtime


class Sharing(Enum):
    """What each device has only its part of, by the names of the libraries. `NOTHING` is DDP, or one device."""

    NOTHING = "DDP"
    ZERO1 = "ZeRO1"
    ZERO2 = "ZeRO2"
    ZERO3 = "ZeRO3"
    FSDP2 = "FSDP2"


@dataclass(frozen=True, slots=True)
class Placed:
    """Bytes on each device, and in the memory of the machine for all of its devices together."""

    device: int
    host: int = 0


def on_each(needs: Needs, sharing: Sharing, devices: int, *, offload: bool = False) -> Placed:
    """What one of `devices` devices holds when each computes micro batches of the same size.

    ZeRO (Rajbhandari et al., arXiv 1910.02054, section 5) shares out the optimizer at stage 1, gradients at 2 and
    weights at 3, as FSDP does. Nothing is shared of activations. With `offload` the optimizer is in the machine's
    memory, and with it gradients (stage 2) and weights (stage 3, FSDP2) while they are not used.
    """
    if devices == 1 and not offload:
        return Placed(needs.total)
    if sharing is Sharing.NOTHING:
        # DDP reduces gradients in buckets that are a copy of them.
        return Placed(needs.total + (needs.gradients if devices > 1 else 0))
    weights_shared = sharing in (Sharing.ZERO3, Sharing.FSDP2)
    gradients_shared = sharing is not Sharing.ZERO1
    weights, gradients = needs.frozen + needs.trained, needs.gradients
    shared = needs.optimizer + (gradients if gradients_shared else 0) + (weights if weights_shared else 0)
    whole = (0 if gradients_shared else gradients) + (0 if weights_shared else weights)
    passing = needs.activations + needs.output + needs.runtime
    passing += _gathered(needs, sharing) if weights_shared else min(REDUCE_BUCKET * HALF, gradients)
    if offload:
        return Placed(device=whole + passing, host=shared)
    return Placed(device=whole + passing + math.ceil(shared / devices))


def _gathered(needs: Needs, sharing: Sharing) -> int:
    """FSDP2 holds the layer at work and the next one; DeepSpeed besides what it keeps alive for the next use."""
    if sharing is Sharing.FSDP2:
        return 2 * needs.block
    return needs.block + min(needs.frozen + needs.trained, (MAX_LIVE + PREFETCH_BUCKET) * HALF)
