"""A file as a layer of an image: a tar with one entry, the same for the same content wherever and whenever made."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK = 2**20  # bytes in memory at once
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Layer:
    """`size` and `digest` are of the tar."""

    path: Path
    name: str
    size: int
    digest: str

    @classmethod
    def of(cls, root: Path, path: Path) -> Layer:
        """Reads the file once."""
        name = path.relative_to(root).as_posix()
        size, digest = 0, hashlib.sha256()
        for chunk in _tar(path, name):
            size += len(chunk)
            digest.update(chunk)
        return cls(path, name, size, f"sha256:{digest.hexdigest()}")

    def chunks(self) -> Iterator[bytes]:
        """The tar, piece by piece."""
        return _tar(self.path, self.name)


def _tar(path: Path, name: str) -> Iterator[bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = path.stat().st_size, 0o644  # time 0, owner 0
    yield entry.tobuf(tarfile.PAX_FORMAT)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
    yield b"\0" * (-entry.size % BLOCK + 2 * BLOCK)
