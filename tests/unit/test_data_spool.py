"""Examples on disk: written once, read in order, and in the end a dataset of the `datasets` library."""

from __future__ import annotations

import errno
from array import array
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from finetune_api.conditions import FailureReason
from finetune_trainer import frame
from finetune_trainer.data.flow import Attached, Example
from finetune_trainer.data.problems import Findings
from finetune_trainer.data.split import Split
from finetune_trainer.data.spool import BATCH_ROWS, ColumnWriter, Spool
from finetune_trainer.data.tokens import store
from finetune_trainer.tasks.kind import Facts

MANY = 2 * BATCH_ROWS + 7


class Plain:
    """An ExampleFormat that only cuts."""

    windowed = False
    facts = Facts()

    def settled(self, tokens: Any) -> Any:
        return tokens

    def cut(self, tokens: Any, max_length: int) -> Any:
        return tokens if len(tokens["input_ids"]) <= max_length else {n: c[:max_length] for n, c in tokens.items()}

    def beside(self, tokens: Any, max_length: int) -> tuple[()]:
        return ()

    def learned(self, tokens: Any) -> int:
        return len(tokens["input_ids"])


def example(number: int, file: str = "train") -> Example:
    ids = array("i", range(number % 50 + 1))
    return Example(file, number + 1, f'{{"text": "Ж{number}"}}', {"input_ids": ids, "labels": ids}, len(ids))


def test_what_goes_in_comes_out_in_order_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    written = [*map(example, range(MANY)), *(example(each, "validation") for each in range(5))]
    with Spool(path, 0) as spool:
        spool.add_file("train", iter(written[:MANY]))
        spool.add_file("train.files[1]", iter([]))
        spool.add_file("validation", iter(written[MANY:]))
        spool.end()
        assert list(spool.examples()) == written
        assert list(spool.examples()) == written
        assert spool.lengths.tolist() == [each.length for each in written]
        assert spool.high[0] == spool.high[MANY] != spool.high[1]
    assert not path.exists()


def test_nothing_is_an_empty_spool(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", 0) as spool:
        spool.add_file("train", iter([]))
        spool.end()
        assert (len(spool), list(spool.examples())) == (0, [])


def test_the_datasets_library_maps_what_is_stored(tmp_path: Path) -> None:
    times, held = np.ones(MANY, np.uint8), np.zeros(MANY, np.bool_)
    times[3], times[5] = 0, 2
    held[3] = True
    findings = Findings()
    with Spool(tmp_path / "spool", 0) as spool:
        spool.add_file("train", map(example, range(MANY)))
        spool.end()
        form: Any = Plain()
        train, validation = store(spool, Split(times, held, 0, 0), 40, form, tmp_path / "data", findings, Attached())
    rows = datasets.load_from_disk(str(tmp_path / "data" / "train"))
    order = [*range(3), 4, 5, 5, *range(6, MANY)]
    assert [len(row) for row in rows["input_ids"]] == [min(40, number % 50 + 1) for number in order]
    assert rows.features == datasets.Features(
        {n: datasets.List(datasets.Value("int32")) for n in ("input_ids", "labels")}
    )
    assert rows.cache_files, "mapped from its file, not read into memory"
    texts = (tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [int(text[11:-2]) for text in texts] == order
    assert len(datasets.load_from_disk(str(tmp_path / "data" / "validation"))) == validation.examples == 1
    assert (train.examples, train.tokens) == (MANY, sum(map(len, rows["input_ids"])))
    assert train.truncated == findings.counts()["train:truncated"] == sum(number % 50 + 1 > 40 for number in order)
    assert train.longest == 40


def test_a_full_volume_is_called_by_its_name() -> None:
    writer = ColumnWriter(Path("/dev/full"), ["input_ids"], None, described=False)
    with pytest.raises(OSError, match="No space left on device") as found:  # noqa: PT012
        for _ in range(10_000):
            writer.add({"input_ids": array("i", range(1000))})
    writer.abandon()
    assert found.value.errno == errno.ENOSPC
    assert frame.explain(found.value)[0].reason is FailureReason.STORAGE_FULL
