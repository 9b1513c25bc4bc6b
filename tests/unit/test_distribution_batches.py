"""Which examples a process takes: the steps are the same, whatever the number of processes and the micro batch."""

from __future__ import annotations

from collections import Counter

import pytest
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler

from finetune_trainer.distribution.batches import Batches, Split, parts, split


def passes(examples: int, cut: Split, process: int, epoch: int = 0) -> list[list[list[int]]]:
    """Positions of each forward pass, a list a step."""
    batches = Batches(examples, cut, process, seed=42)
    batches.set_epoch(epoch)
    found = list(batches)
    assert len(found) == len(batches)
    steps, at = [], 0
    for step in range(batches.steps):
        count = cut.passes_of(batches.step_size(step))
        sizes = cut.sizes(batches.step_size(step), process)
        # A pass that is there for company has one example, which counts nothing.
        steps.append([rows[:size] for rows, size in zip(found[at : at + count], sizes, strict=True)])
        assert all(len(rows) == max(1, size) for rows, size in zip(found[at : at + count], sizes, strict=True))
        at += count
    assert at == len(found)
    return steps


def learned(examples: int, cut: Split, epoch: int = 0) -> list[Counter[int]]:
    """What each step learns, over all processes."""
    of_process = [passes(examples, cut, process, epoch) for process in range(cut.processes)]
    return [
        Counter(position for steps in of_process for rows in steps[step] for position in rows)
        for step in range(len(of_process[0]))
    ]


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("micro", [1, 3, 8])
@pytest.mark.parametrize(("examples", "batch"), [(17, 4), (16, 8), (5, 8), (100, 10), (1, 1)])
def test_the_same_steps(examples: int, batch: int, processes: int, micro: int) -> None:
    alone = learned(examples, split(batch, 1, batch), epoch=3)
    cut = split(batch, processes, micro)
    assert cut.micro <= micro
    assert learned(examples, cut, epoch=3) == alone
    assert sum(alone, Counter()) == Counter(range(examples))  # each example once an epoch


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_all_processes_take_part_in_every_pass(processes: int) -> None:
    cut = split(6, processes, 2)
    lengths = {len(Batches(13, cut, process, seed=1)) for process in range(processes)}
    assert len(lengths) == 1
    assert min(len(rows) for process in range(processes) for rows in Batches(13, cut, process, seed=1)) == 1


def test_the_order_is_that_of_the_stock_loader() -> None:
    """So that a training that an older version began goes on in the order that it was in."""
    stock = SeedableRandomSampler(RandomSampler(range(11)).data_source, data_seed=42)
    stock.set_epoch(2)
    ours = Batches(11, split(11, 1, 11), 0, seed=42)
    ours.set_epoch(2)
    assert next(iter(ours)) == list(stock)


@pytest.mark.parametrize(
    ("batch", "processes", "most", "micro", "count"),
    [(32, 1, 8, 8, 4), (32, 4, 8, 8, 1), (10, 4, 8, 3, 1), (10, 1, 4, 4, 3), (2, 4, 8, 1, 1), (12, 1, 5, 4, 3)],
)
def test_split(batch: int, processes: int, most: int, micro: int, count: int) -> None:
    cut = split(batch, processes, most)
    assert (cut.micro, cut.passes) == (micro, count)


def test_parts() -> None:
    assert parts(10, 4) == [3, 3, 2, 2]
    assert parts(1, 3) == [1, 0, 0]
