"""The bytes of a file, unpacked when it is gzip, and never more of them than allowed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from finetune_trainer.data.formats.form import MAX_ROW_BYTES, refuse
from finetune_trainer.data.problems import FileName
from finetune_trainer.errors import DIVIDE

GZIP_MAGIC = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"
BUFFER = 2**20  # bytes read at once


class Unpacked(io.RawIOBase):
    """A stream that says in words what is wrong with it. Raises UserInputError when the gzip data is damaged, and
    when more than `max_bytes` come out: a small file can unpack to any size."""

    def __init__(self, source: BinaryIO, file: FileName, max_bytes: int) -> None:
        self._source, self._file, self._max_bytes = source, file, max_bytes
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._source.read(len(target))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            refuse(
                f"{self._file} data: the gzip file is damaged or cut short after {self._total} unpacked bytes: {error}",
                "compress and upload the file again (test it with: gzip -t FILE)",
            )
        self._total += len(data)
        if self._total > self._max_bytes:
            refuse(
                f"{self._file} data: more than {self._max_bytes} bytes once unpacked",
                DIVIDE,
            )
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


def open_unpacked(path: Path, file: FileName, max_bytes: int) -> io.BufferedReader:
    """The file's bytes, from gzip where it begins as such."""
    source = path.open("rb")
    packed = source.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    source.seek(0)
    inner = cast(BinaryIO, gzip.GzipFile(fileobj=source)) if packed else source
    return io.BufferedReader(Unpacked(inner, file, max_bytes), BUFFER)


def bounded_lines(stream: io.BufferedReader) -> Iterator[bytes]:
    """The lines with their ends, without a byte order mark. Of a line above MAX_ROW_BYTES only one byte more comes:
    the rest is passed over."""
    first = True
    while line := stream.readline(MAX_ROW_BYTES + 1):
        yield line.removeprefix(UTF8_MARK) if first else line
        first = False
        while len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_ROW_BYTES + 1)
