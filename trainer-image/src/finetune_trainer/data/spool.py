"""The uncut examples of all files: on disk, with the little that must be known of all of them at once in memory."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from finetune_trainer.data.flow import Example
from finetune_trainer.data.problems import FileName

BATCH_ROWS, BATCH_TOKENS = 1024, 2**20  # of a batch on disk, at most: of both the one that is reached first
COMPRESSION = "lz4"  # tokens have 4 bytes, of which two or three are nearly always the same
TEXT, LEARNED = "text", "learned"


@dataclass(frozen=True, slots=True)
class Part:
    """The examples of one file, positions [first, after) of the spool. `weight`: how often an epoch passes over it."""

    file: FileName
    first: int
    after: int
    weight: float = 1.0

    @property
    def place(self) -> slice:
        return slice(self.first, self.after)


class Spool:
    """Examples are added file by file and read again in the same order. 24 bytes of each stay in memory.

    `high` and `low` are the two halves of an example's key, uint64 [n]: equal for equal examples, and otherwise as
    good as random numbers, drawn by the run's seed and the content alone. `lengths` are tokens, uint32 [n].
    """

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._seed = path, seed
        self._high, self._low = array("Q"), array("Q")
        self._lines, self._lengths = array("I"), array("I")
        self._parts: list[Part] = []
        self._writer: ColumnWriter | None = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.abandon()
        self._path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._lines)

    def add_file(self, file: FileName, examples: Iterator[Example], weight: float = 1.0) -> Part:
        """Write all examples of a file. Raises OSError when the volume is full."""
        first = len(self)
        for example in examples:
            self._add(example)
        part = Part(file, first, len(self), weight)
        self._parts.append(part)
        return part

    def end(self) -> None:
        """Nothing more is added; from now on it can be read."""
        if self._writer:
            self._writer.close()

    @property
    def high(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._high, np.uint64)

    @property
    def low(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._low, np.uint64)

    @property
    def lengths(self) -> NDArray[np.uint32]:
        return np.frombuffer(self._lengths, np.uint32)

    def line(self, position: int) -> int:
        return self._lines[position]

    def examples(self) -> Iterator[Example]:
        """All examples, in order."""
        if self._writer is None:
            return
        position, parts = 0, iter(self._parts)
        part = next(parts)
        for batch in _batches(self._path):
            for text, learned, tokens in _rows(batch):
                while position >= part.after:
                    part = next(parts)
                yield Example(part.file, self._lines[position], text, tokens, learned)
                position += 1

    def _add(self, example: Example) -> None:
        key = hashlib.sha256(f"{self._seed}:{example.digest}".encode()).digest()
        high, low = struct.unpack(">QQ", key[:16])
        self._high.append(high)
        self._low.append(low)
        self._lines.append(example.line)
        self._lengths.append(example.length)
        if self._writer is None:
            self._writer = ColumnWriter(self._path, list(example.tokens), COMPRESSION, described=True)
        self._writer.add(example.tokens, example.text, example.learned)


class ColumnWriter:
    """Writes examples as Arrow's stream format: their columns as lists of int32, and, when `described`, what is said
    of them. Holds one batch in memory."""

    def __init__(self, path: Path, names: Sequence[str], compression: str | None, *, described: bool) -> None:
        self._names, self._described = names, described
        kinds: dict[str, pa.DataType] = {TEXT: pa.large_string(), LEARNED: pa.int32()} if described else {}
        self._schema = pa.schema({**kinds, **dict.fromkeys(names, pa.list_(pa.int32()))})
        self._sink = pa.OSFile(str(path), "wb")
        options = pa.ipc.IpcWriteOptions(compression=compression)
        self._stream = pa.ipc.new_stream(self._sink, self._schema, options=options)
        self._rows: list[Mapping[str, array[int]]] = []
        self._texts: list[str] = []
        self._learned = array("i")
        self._size = 0

    def add(self, tokens: Mapping[str, array[int]], text: str = "", learned: int = 0) -> None:
        """Raises OSError when the volume is full."""
        self._rows.append(tokens)
        self._size += sum(map(len, tokens.values()))
        if self._described:
            self._texts.append(text)
            self._learned.append(learned)
        if len(self._rows) >= BATCH_ROWS or self._size >= BATCH_TOKENS:
            self._flush()

    def close(self) -> None:
        """Write what is held, and the end. Raises OSError when the volume is full."""
        self._flush()
        self._stream.close()
        self._sink.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._sink.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        said = [pa.array(self._texts, pa.large_string()), pa.array(self._learned)] if self._described else []
        columns = [_column([row[name] for row in self._rows]) for name in self._names]
        self._stream.write_batch(pa.record_batch([*said, *columns], schema=self._schema))
        self._rows, self._texts, self._learned, self._size = [], [], array("i"), 0


def _column(rows: Sequence[array[int]]) -> pa.ListArray:
    """A list column built from one flat buffer: no Python object a token."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    offsets[1:] = np.cumsum([len(row) for row in rows])
    flat = np.frombuffer(b"".join(row.tobytes() for row in rows), np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Read, not mapped: what is mapped counts as the process's memory until the kernel wants it back."""
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as stream:
        yield from stream


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[str, int, dict[str, array[int]]]]:
    names = [name for name in batch.schema.names if name not in (TEXT, LEARNED)]
    columns = [(name, *_flat(batch.column(name))) for name in names]
    said = zip(batch.column(TEXT).to_pylist(), batch.column(LEARNED).to_pylist(), strict=True)
    for row, (text, learned) in enumerate(said):
        tokens = {name: array("i", flat[ends[row] : ends[row + 1]].tobytes()) for name, flat, ends in columns}
        yield text, learned, tokens


def _flat(column: pa.ListArray) -> tuple[NDArray[np.int32], list[int]]:
    """The values of all rows, and where each row begins and ends among them."""
    return column.values.to_numpy(), column.offsets.to_pylist()
