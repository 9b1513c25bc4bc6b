"""Folders of the `datasets` library: saved ones and Parquet shards, and what is no single split."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from tests.data_rows import Found, read_file

from finetune_trainer import artifacts
from finetune_trainer.data.formats import columnar
from finetune_trainer.errors import UserInputError

ROWS = [{"messages": [{"role": "user", "content": f"question {n}"}], "label": n % 2} for n in range(45)]
FEATURES = datasets.Features(
    {
        "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        "label": datasets.ClassLabel(names=["no", "yes"]),
    }
)
WANTED = [(n, {**row, "label": ["no", "yes"][int(str(row["label"]))]}) for n, row in enumerate(ROWS, start=1)]


def data() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS, features=FEATURES)


def read(folder: Path) -> Found:
    return read_file(folder, None, folder.name)


@pytest.mark.parametrize("shards", [1, 3])
def test_saved_folder_is_read_in_order(tmp_path: Path, shards: int) -> None:
    data().save_to_disk(str(tmp_path / "saved"), num_shards=shards)
    found = read(tmp_path / "saved")
    assert (found.rows, found.faults) == (WANTED, [])


@pytest.mark.parametrize("inner", ["", "data"])
def test_parquet_shards_are_read_in_order(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir(exist_ok=True)
    for index in range(3):
        shard = data().shard(3, index, contiguous=True)
        shard.to_parquet(str(tmp_path / inner / f"train-{index:05}-of-00003.parquet"))
    (tmp_path / "README.md").write_text("x")
    assert read(tmp_path).rows == WANTED


def test_bytes_are_left_out_of_saved_folders_too(tmp_path: Path) -> None:
    rows = {"text": ["a", "b"], "picture": [b"x", b"y"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    found = read(tmp_path / "saved")
    assert found.values == [{"text": "a"}, {"text": "b"}]
    assert found.faults == [("bytes_column", [0], "")]


def test_large_batches_are_read_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain_rows = columnar._plain_rows
    monkeypatch.setattr(columnar, "_plain_rows", lambda batch: sizes.append(batch.num_rows) or plain_rows(batch))
    data().save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved").rows == WANTED
    assert max(sizes) <= columnar.BATCH_ROWS < len(ROWS)


def splits(folder: Path) -> None:
    datasets.DatasetDict({"train": data(), "test": data()}).save_to_disk(str(folder))


def two_splits(folder: Path) -> None:
    for name in ("train", "test"):
        data().to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))


def no_files(folder: Path) -> None:
    (folder / "state.json").write_text('{"_data_files": []}')


def broken_state(folder: Path) -> None:
    (folder / "state.json").write_text("{")


def missing_file(folder: Path) -> None:
    data().save_to_disk(str(folder))
    next(folder.glob("*.arrow")).unlink()


def cut_file(folder: Path) -> None:
    data().save_to_disk(str(folder))
    path = next(folder.glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:-300])


def way_out(folder: Path) -> None:
    outside = folder.parent / "outside.arrow"
    outside.write_bytes(b"secret")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../outside.arrow"}]}))


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside.parquet"
    data().to_parquet(str(outside))
    (folder / "train.parquet").symlink_to(outside)


@pytest.mark.parametrize(
    ("make", "message", "advice"),
    [
        (splits, "several splits: test, train", "name the folder of one of them"),
        (two_splits, "several splits: test, train", "name one file"),
        (lambda folder: None, "neither Parquet files nor", "name the data file itself"),
        (no_files, "names no data files", "save_to_disk"),
        (broken_state, "names no data files", "save_to_disk"),
        (missing_file, "missing or lies outside", "whole folder"),
        (way_out, "missing or lies outside", "whole folder"),
        (link_out, "missing or lies outside", "whole folder"),
        (cut_file, "the Arrow file is damaged", "again"),
    ],
)
def test_folder_that_is_no_data_is_refused(tmp_path: Path, make: object, message: str, advice: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert callable(make)
    make(folder)
    with pytest.raises(UserInputError) as caught:
        read(folder)
    assert message in caught.value.message
    assert advice in caught.value.advice


def test_digest_of_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    digests = []
    for name, content in (("a", b"1"), ("a", b"2"), ("b", b"2")):
        folder = tmp_path / f"{name}{content.decode()}"
        folder.mkdir()
        (folder / name).write_bytes(content)
        digests.append(artifacts.sha256_of(folder))
        assert artifacts.size_of(folder) == 1
        assert artifacts.sha256_of(folder) == digests[-1]
    assert len(set(digests)) == 3
