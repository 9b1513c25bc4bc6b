"""What the processes of a gang say to each other beside gradients: a few words, over a group of their own."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist

from finetune_trainer.distribution.environment import Place
from finetune_trainer.training.device import Device

T = TypeVar("T")
# Of a collective of gradients: what transformers gives it (ddp_timeout). The others wait longer: while one process
# measures, saves, or sums up tens of gigabytes of checkpoints on slow storage, all others do. One that dies is seen at
# once all the same: its launcher ends the gang.
GRADIENTS_TIMEOUT = timedelta(minutes=30)
WORDS_TIMEOUT = timedelta(hours=3)


class Group:
    """Context manager around all that the processes do together. With one process nothing is sent.

    Every method is called by all processes, in the same order.
    """

    def __init__(self, place: Place, device: Device) -> None:
        self.place = place
        self._device = device
        self._words: dist.ProcessGroup | None = None

    def __enter__(self) -> Group:
        if self.place.size > 1:
            on_gpu = self._device.kind == "cuda"
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                timeout=GRADIENTS_TIMEOUT,
                device_id=torch.device("cuda", self.place.local) if on_gpu else None,
            )
            # gloo: a word on the CPU waits for no GPU.
            self._words = dist.new_group(backend="gloo", timeout=WORDS_TIMEOUT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Part. DeepSpeed aborts the interpreter at its end when the group is still there."""
        self._words = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for all."""
        if self._words is not None:
            dist.barrier(self._words)

    def any(self, said: bool) -> bool:
        """Whether at least one process says so; the same answer everywhere."""
        if self._words is None:
            return said
        heard = torch.tensor(int(said))
        dist.all_reduce(heard, dist.ReduceOp.MAX, group=self._words)
        return bool(heard)

    def of_first(self, value: T) -> T:
        """What the first process has, everywhere."""
        if self._words is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._words)
        return box[0]

    def all_of(self, value: T) -> list[T]:
        """What each process has, by rank."""
        if self._words is None:
            return [value]
        found: list[T | None] = [None] * self.place.size
        dist.all_gather_object(found, value, group=self._words)
        return found  # type: ignore[return-value]  # every place was filled


def alone() -> Group:
    """Of one process."""
    return Group(Place(), Device("cpu", "float32", "cpu"))
