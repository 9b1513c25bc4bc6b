"""Parquet, by row groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from finetune_trainer.data.formats.columnar import BATCH_ROWS
from finetune_trainer.data.formats.form import Form

BATCH_BYTES = 8 * 2**20  # of a batch, by what the file says of its row groups
PIECE_BYTES = 2**20  # of a column, read at once


class ParquetReader:
    form = Form.PARQUET

    def schema(self, path: Path) -> pa.Schema:
        with pq.ParquetFile(path) as parquet:
            return parquet.schema_arrow

    def batches(self, path: Path, names: list[str] | None) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path, buffer_size=PIECE_BYTES, pre_buffer=False) as parquet:
            for group in range(parquet.num_row_groups):
                about = parquet.metadata.row_group(group)
                each = max(1, about.total_byte_size // max(1, about.num_rows))
                size = max(1, min(BATCH_ROWS, BATCH_BYTES // each))
                yield from parquet.iter_batches(size, row_groups=[group], columns=names, use_threads=False)
