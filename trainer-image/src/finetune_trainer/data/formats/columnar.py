"""Files of columns, a batch of rows at a time; nested columns become lists and objects."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa  # type: ignore[import-untyped]

from finetune_trainer.data.formats.column_labels import LabelNames, label_names
from finetune_trainer.data.formats.form import MAX_ROW_BYTES, Form, Numbered, Opened, refuse, refuse_repeated
from finetune_trainer.data.problems import Fault, FileName, Findings, plain_word
from finetune_trainer.errors import DIVIDE

BATCH_ROWS = 16  # read at once, at most: a small file can unpack to large rows
BROKEN = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last: of a name of a column


class ColumnReader(Protocol):
    """How files of one form are read. Both raise what BROKEN names when a file is damaged."""

    form: Form

    def schema(self, path: Path) -> pa.Schema: ...

    def batches(self, path: Path, names: list[str] | None) -> Iterator[pa.RecordBatch]:
        """At most BATCH_ROWS rows at once, of the columns `names` (None: of all)."""


def open_columns(
    paths: Sequence[Path], reader: ColumnReader, file: FileName, findings: Findings, *, max_bytes: int
) -> Opened:
    """The rows of the files, one after the other, numbered from 1 throughout. Columns of bytes (pictures, sound) are
    left out with a warning.

    Raises UserInputError when a file is damaged, or has no column that can be read.
    """
    findings.count_in(file, "row")
    try:
        schema = reader.schema(paths[0])
    except BROKEN as error:
        refuse(f"{file} data: the {reader.form} file is damaged or cut short: {_first_line(error)}", "upload it again")
    refuse_repeated(schema.names, f"{file} data: the {reader.form} file", advice="")
    unread = [field.name for field in schema if _holds_bytes(field.type)]
    names = [field.name for field in schema if field.name not in unread]
    if unread:
        text = f"the column {plain_word(unread[0])} holds bytes and is not read; a text must have the type string"
        findings.add(file, 0, [Fault("bytes_column", text, severity="warning")])
    if not names:
        refuse(f"{file} data: the {reader.form} file has no column of texts or numbers", "write texts as type string")
    batches = _batches(paths, reader, names if unread else None, file, max_bytes)
    return Opened(reader.form, _rows(batches, label_names(schema), file, findings), tuple(names))


def _batches(
    paths: Sequence[Path], reader: ColumnReader, names: list[str] | None, file: FileName, max_bytes: int
) -> Iterator[pa.RecordBatch]:
    number, total = 0, 0
    for path in paths:
        try:
            for batch in reader.batches(path, names):
                total += batch.nbytes
                if total > max_bytes:
                    refuse(
                        f"{file} data: more than {max_bytes} bytes once unpacked",
                        DIVIDE,
                    )
                number += batch.num_rows
                yield batch
        except BROKEN as error:
            refuse(
                f"{file} data: the {reader.form} file is damaged after row {number}: {_first_line(error)}",
                "write or upload the file again",
            )


def _rows(batches: Iterator[pa.RecordBatch], labels: LabelNames, file: FileName, findings: Findings) -> Numbered:
    plain = (found for batch in batches for found in _plain_rows(batch))
    for number, (row, fault) in enumerate(plain, start=1):
        if fault:
            findings.add(file, number, [fault])
        else:
            yield number, labels.put_into(row)


def _plain_rows(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], Fault | None]]:
    """Every row as (plain values, None) or ({}, what is wrong)."""
    if batch.nbytes <= MAX_ROW_BYTES:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:  # find out which
            pass
        else:
            yield from ((_plain_row(row), None) for row in rows)
            return
    for index in range(batch.num_rows):
        one = batch.slice(index, 1)
        if one.nbytes > MAX_ROW_BYTES:
            text = f"the row is longer than {MAX_ROW_BYTES // 2**20} MiB, which is no training example; split it"
            yield {}, Fault("line_too_long", text)
            continue
        try:
            yield _plain_row(one.to_pylist()[0]), None
        except UnicodeDecodeError:
            yield {}, Fault("not_utf8", "a text of the row is not UTF-8; write the file again with valid texts")


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """As JSON has it. What a struct holds as null is left out: every struct of a column has the keys of all. A number
    that is none (NaN) is null; dates and decimals become texts."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, tuple):  # an entry of a map: (key, value)
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    return value


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether bytes lie anywhere in the type."""
    if isinstance(kind, pa.DictionaryType):
        return _holds_bytes(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_bytes(kind.storage_type)
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in binary)


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:200]
