"""Folders of the `datasets` library: what `save_to_disk` writes, and Parquet files of one split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]

from finetune_trainer.data.formats.columnar import BATCH_ROWS, ColumnReader
from finetune_trainer.data.formats.form import Form, refuse
from finetune_trainer.data.formats.parquet import ParquetReader
from finetune_trainer.data.problems import FileName

STATE = "state.json"  # of `Dataset.save_to_disk`: names the files
SPLITS = "dataset_dict.json"  # of `DatasetDict.save_to_disk`: names the folders
SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+")


class ArrowReader:
    """Arrow's stream format, as `save_to_disk` writes it."""

    form = Form.ARROW

    def schema(self, path: Path) -> pa.Schema:
        with path.open("rb") as source, pa.ipc.open_stream(source) as stream:
            return stream.schema

    def batches(self, path: Path, names: list[str] | None) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                chosen = batch.select(names) if names else batch
                for start in range(0, chosen.num_rows, BATCH_ROWS):
                    yield chosen.slice(start, BATCH_ROWS)


def files_of(folder: Path, file: FileName) -> tuple[list[Path], ColumnReader]:
    """The folder's data files in order, and how they are read. Raises UserInputError with what to name instead."""
    if (folder / SPLITS).is_file():
        names = sorted(entry.name for entry in folder.iterdir() if (entry / STATE).is_file())
        refuse(
            f"{file} data: the folder holds several splits: {', '.join(names[:8])}",
            f"name the folder of one of them, for example .../{names[0] if names else 'train'}",
        )
    if (folder / STATE).is_file():
        return [_inside(folder, name, file) for name in _saved(folder, file)], ArrowReader()
    found = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    if not found:
        refuse(
            f"{file} data: the folder holds neither Parquet files nor what datasets.Dataset.save_to_disk writes",
            "name the data file itself: JSON Lines, JSON, CSV or Parquet",
        )
    _refuse_splits(found, file)
    return [_inside(folder, str(path.relative_to(folder)), file) for path in found], ParquetReader()


def _saved(folder: Path, file: FileName) -> Sequence[str]:
    try:
        files = json.loads((folder / STATE).read_bytes())["_data_files"]
        names = [str(entry["filename"]) for entry in files]
    except (LookupError, TypeError, ValueError, RecursionError):
        names = []
    if not names:
        refuse(f"{file} data: {STATE} of the folder names no data files", "write it again with Dataset.save_to_disk")
    return names


def _refuse_splits(found: Sequence[Path], file: FileName) -> None:
    """Train and test files in one folder are not to be learned together."""
    matches = [SHARD.fullmatch(path.stem) for path in found]
    splits = sorted({match["split"] for match in matches if match})
    if len(splits) > 1:
        refuse(
            f"{file} data: the folder holds the Parquet files of several splits: {', '.join(splits[:8])}",
            "name one file, or put the files of each split into a folder of their own",
        )


def _inside(folder: Path, name: str, file: FileName) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        refuse(f"{file} data: a data file of the folder is missing or lies outside of it", "upload the whole folder")
    return path
