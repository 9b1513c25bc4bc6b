"""Which examples each process takes in each forward pass: the same steps, whatever the number of processes.

The order of an epoch is a permutation drawn from seed and epoch. Every `batch_size` examples of it are one optimizer
step, the last of an epoch may have fewer. A step is dealt to the processes in contiguous, nearly equal parts, and
each part to forward passes of at most `micro` examples. A process that gets fewer passes than another computes an
example once more, which counts nothing: where the processes work together in a pass, all must take part in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler


@dataclass(frozen=True, slots=True)
class Split:
    """How a step is cut. `micro`: examples of a pass at most; `passes`: of each process, in a whole step."""

    batch_size: int
    processes: int
    micro: int

    @property
    def passes(self) -> int:
        return self.passes_of(self.batch_size)

    def passes_of(self, examples: int) -> int:
        """Forward passes of each process for a step of so many examples."""
        return math.ceil(math.ceil(examples / self.processes) / self.micro)

    def sizes(self, examples: int, process: int) -> list[int]:
        """Examples of each pass of one process; 0: it takes part with one that does not count."""
        return parts(parts(examples, self.processes)[process], self.passes_of(examples))


def split(batch_size: int, processes: int, micro: int) -> Split:
    """The split with passes as large as `micro` allows, and of nearly equal size."""
    share = math.ceil(batch_size / processes)
    passes = math.ceil(share / min(micro, share))
    return Split(batch_size, processes, math.ceil(share / passes))


def parts(whole: int, count: int) -> list[int]:
    """`count` nearly equal numbers that together make `whole`, the larger ones first."""
    least, more = divmod(whole, count)
    return [least + (number < more) for number in range(count)]


class Batches(Sampler[list[int]]):
    """The positions of one process's forward passes, epoch by epoch: a batch sampler."""

    def __init__(self, examples: int, cut: Split, process: int, seed: int) -> None:
        self.examples = examples
        self.cut = cut
        self.process = process
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """transformers calls it at the beginning of each epoch."""
        self.epoch = epoch

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(self.examples / self.cut.batch_size)

    def step_size(self, step: int) -> int:
        """Examples of a step of the training, counted from 0, in all processes."""
        return min(self.cut.batch_size, self.examples - step % self.steps * self.cut.batch_size)

    def __len__(self) -> int:
        """Forward passes of an epoch."""
        return (self.steps - 1) * self.cut.passes + self.cut.passes_of(self.step_size(self.steps - 1))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.examples, generator=generator).tolist()
        for step in range(self.steps):
            first, size = step * self.cut.batch_size, self.step_size(step)
            at = first + sum(parts(size, self.cut.processes)[: self.process])
            for count in self.cut.sizes(size, self.process):
                yield order[at : at + count] or [order[first]]
                at += count
