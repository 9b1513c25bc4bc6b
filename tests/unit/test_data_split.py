"""Duplicates, the held-out examples and weights: by keys, and as the plain words of the documentation have it."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.flow import Example
from finetune_trainer.data.problems import Findings
from finetune_trainer.data.split import Split, split, weighted
from finetune_trainer.data.spool import Part, Spool
from finetune_trainer.data.tokens import length_stats, percentile
from finetune_trainer.errors import UserInputError

TRAIN, HELD = "train", "validation"


def example(content: int, line: int, file: str = TRAIN) -> Example:
    return Example(file, line, f'"{content}"', {"input_ids": array("i", [content]), "labels": array("i", [content])}, 1)


def spooled(spool: Spool, contents: Sequence[int], file: str, weight: float = 1.0) -> Part:
    return spool.add_file(file, (example(each, line, file) for line, each in enumerate(contents, 1)), weight)


def held_out(contents: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Positions: the rule as it stood when examples were kept in a list."""
    digests = [hashlib.sha256(f'"{each}"'.encode()).hexdigest() for each in contents]
    ranked = sorted(set(digests), key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())
    chosen = ranked[: min(max(1, round(fraction * len(ranked))), len(ranked) - 1)]
    return sorted(digests.index(digest) for digest in chosen)


@given(
    contents=st.lists(st.integers(0, 30), min_size=10, max_size=60).filter(lambda found: len(set(found)) > 1),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 5),
)
def test_a_share_is_held_out_by_content_whatever_the_order(contents: list[int], fraction: float, seed: int) -> None:
    found, findings = _split(contents, None, fraction, seed)
    held = held_out(contents, fraction, seed)
    assert np.flatnonzero(found.held).tolist() == held
    out = {contents[position] for position in held}
    assert found.times.tolist() == [int(each not in out) for each in contents]
    assert found.duplicates == len(contents) - len(set(contents)) == findings.counts().get("train:duplicate", 0)
    backwards, _ = _split(contents[::-1], None, fraction, seed)
    assert {contents[::-1][position] for position in np.flatnonzero(backwards.held)} == out


@given(
    contents=st.lists(st.integers(0, 20), min_size=10, max_size=40),
    held=st.lists(st.integers(0, 40), min_size=1, max_size=40),
)
def test_what_is_trained_on_is_not_measured_on(contents: list[int], held: list[int]) -> None:
    if set(held) <= set(contents):
        with pytest.raises(UserInputError, match="every held-out example is also a training example"):
            _split(contents, held, 0, 0)
        return
    found, findings = _split(contents, held, 0, 0)
    assert found.held.tolist() == [False] * len(contents) + [each not in contents for each in held]
    assert found.times.tolist() == [1] * len(contents) + [0] * len(held)
    assert found.overlap == sum(each in contents for each in held)
    lines = {finding.fault.check: finding.lines for finding in findings.sorted()}
    assert lines.get("overlap", []) == [line for line, each in enumerate(held, 1) if each in contents]
    counts = Counter(contents)
    assert found.duplicates == sum(count - 1 for count in counts.values())


def test_one_different_example_cannot_be_split() -> None:
    with pytest.raises(UserInputError, match="1 different example"):
        _split([7] * 10, None, 0.5, 0)


@pytest.mark.parametrize("held", [None, [20]])
def test_fewer_than_ten_examples_teach_nothing(held: list[int] | None) -> None:
    with pytest.raises(UserInputError, match=r"train data: 9 example\(s\), and at least 10 are needed"):
        _split(range(9), held, 0.5, 0)
    assert _split(range(10), held, 0.5, 0)[0].train_examples == (5 if held is None else 10)


def _split(contents: Sequence[int], held: Sequence[int] | None, fraction: float, seed: int) -> tuple[Split, Findings]:
    findings = Findings()
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder) / "spool", seed) as spool:
        train = spooled(spool, contents, TRAIN)
        part = None if held is None else spooled(spool, held, HELD)
        spool.end()
        return split(spool, [train], part, fraction, findings), findings


@pytest.mark.parametrize(
    ("weight", "total"), [(1, 10), (2, 20), (0.5, 5), (2.5, 25), (0.01, 1), (0.25, 2), (100, 1000)]
)
def test_a_weight_is_how_often_an_epoch_passes(weight: float, total: int) -> None:
    times = np.array([1] * 10 + [0] * 3, np.uint8)  # three are held out
    low = np.random.default_rng(1).integers(0, 2**63, 13).astype(np.uint64)
    found = weighted(times, low, weight)
    assert found.sum() == total
    assert not found[10:].any()
    assert found[:10].max() - found[:10].min() <= 1
    order = np.random.default_rng(2).permutation(13)
    assert (weighted(times[order], low[order], weight) == found[order]).all()


def test_each_file_has_its_weight(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", 0) as spool:
        parts = [
            spooled(spool, range(10), "train.files[0]", 0.5),
            spooled(spool, [3, *range(20, 30)], "train.files[1]", 3),
        ]
        spool.end()
        findings = Findings()
        found = split(spool, parts, None, 0.01, findings)
    held = int(np.flatnonzero(found.held)[0])
    assert sorted(set(found.times[:10])) == [0, 1]
    assert found.times[:10].sum() in (4, 5)
    assert set(np.delete(found.times[10:], held - 10 if held >= 10 else [])) <= {0, 3}
    (again,) = (finding for finding in findings.sorted() if finding.fault.check == "duplicate")
    assert (again.file, again.lines) == ("train.files[1]", [1])  # what is equal may stand in different files


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), percent=st.sampled_from([50, 90, 99]))
def test_percentiles_are_by_nearest_rank(lengths: list[int], percent: int) -> None:
    ordered = sorted(lengths)
    nearest = next(value for value in ordered if sum(each <= value for each in ordered) * 100 >= percent * len(ordered))
    assert percentile(np.bincount(lengths), percent) == nearest


def test_lengths_count_as_often_as_they_are_trained_on() -> None:
    lengths, times = np.array([5, 9, 1], np.uint32), np.array([1, 3, 0], np.uint8)
    found = length_stats(lengths, times)
    assert (found.min, found.p50, found.max) == (5, 9, 9)
