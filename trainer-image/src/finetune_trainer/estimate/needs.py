"""Bytes of a training step by what they are for, and where the devices that share the work hold them."""

from __future__ import annotations

from dataclasses import dataclass, fields
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
    moment, `output` the scores of the vocabulary and the loss.
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
        return sum(getattr(self, each.name) for each in fields(self) if each.name != "block")


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
    passing = needs.activations + needs.output + needs.runtime
    if sharing is Sharing.NOTHING:
        # DDP reduces gradients in buckets that are a copy of them.
        return Placed(needs.total + (needs.gradients if devices > 1 else 0))
    weights, gradients, optimizer = needs.frozen + needs.trained, needs.gradients, needs.optimizer / devices
    bucket = min(REDUCE_BUCKET * HALF, needs.gradients)
    if sharing is not Sharing.ZERO1:
        gradients /= devices
    if sharing in (Sharing.ZERO3, Sharing.FSDP2):
        weights = weights / devices
        bucket = _gathered(needs, sharing)
    shared_weights = weights if sharing in (Sharing.ZERO3, Sharing.FSDP2) else 0
    shared_gradients = gradients if sharing is not Sharing.ZERO1 else 0
    if not offload:
        return Placed(round(weights + gradients + optimizer + bucket + passing))
    return Placed(
        device=round(weights - shared_weights + gradients - shared_gradients + bucket + passing),
        host=round((optimizer + shared_weights + shared_gradients) * devices),
    )


def _gathered(needs: Needs, sharing: Sharing) -> int:
    """FSDP2 holds the layer at work and the next one; DeepSpeed besides what it keeps alive for the next use."""
    if sharing is Sharing.FSDP2:
        return 2 * needs.block
    return needs.block + min(needs.frozen + needs.trained, (MAX_LIVE + PREFETCH_BUCKET) * HALF)
