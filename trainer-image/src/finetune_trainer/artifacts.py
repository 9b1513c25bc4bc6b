"""Folders on the artifact volume that can be trusted: every finished one has a `manifest.json`, written last.

A manifest is {"files": {relative path: {"sha256": hex, "size": bytes}}}. A folder without one is unfinished and is
never read; one whose content differs from it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from finetune_trainer.errors import ArtifactInvalidError

MANIFEST = "manifest.json"
CARD = "README.md"  # may be added to a finished folder: a model's card tells what was measured of it later
CHUNK = 4 * 2**20  # bytes read at once while hashing: large enough for network volumes, small in memory
REMEDY = "set a new spec.rerunToken, so that it is made anew; where it is a base model, delete its folder first"


class FileEntry(TypedDict):
    sha256: str
    size: int


def finish(directory: Path) -> str:
    """Declare `directory` finished: write its manifest atomically, after everything in it is on disk.

    Returns the SHA-256 of the manifest, 64 hexadecimal digits: the digest of the whole folder.
    Raises ArtifactInvalidError when the folder is empty or holds a link or a special file.
    """
    files: dict[str, FileEntry] = {}
    for path in _contents(directory):
        if path.is_symlink() or not path.is_file():
            raise ArtifactInvalidError(f"{path} is not a plain file", advice="keep only plain files in an artifact")
        _sync(path)
        files[path.relative_to(directory).as_posix()] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    if not files:
        raise ArtifactInvalidError(f"{directory} is empty", advice=REMEDY)
    text = json.dumps({"files": files}, indent=1, sort_keys=True) + "\n"
    write_json(directory / MANIFEST, text)
    return hashlib.sha256(text.encode()).hexdigest()


def is_complete(directory: Path) -> bool:
    """Whether the folder was finished. Says nothing about what happened to it since; see `verify`."""
    return (directory / MANIFEST).is_file()


def verify(directory: Path, *, sizes_only: bool = False) -> str:
    """Compare the folder with its manifest; return the manifest's SHA-256, 64 hexadecimal digits.

    `sizes_only` leaves the contents unread, for large folders that were verified when they were made.
    Raises ArtifactInvalidError that names the first file which is missing, extra or different.
    """
    text, files = _read_manifest(directory)
    found = {path.relative_to(directory).as_posix(): path for path in _contents(directory)}
    for name in sorted(files.keys() - found.keys()):
        raise ArtifactInvalidError(f"{directory / name} is missing", advice=REMEDY)
    for name in sorted(found.keys() - files.keys() - {CARD}):
        raise ArtifactInvalidError(f"{directory / name} is not in the folder's {MANIFEST}", advice=REMEDY)
    for name, entry in files.items():
        if not _matches(found[name], entry, sizes_only=sizes_only):
            raise ArtifactInvalidError(f"{directory / name} was changed after it was made", advice=REMEDY)
    return hashlib.sha256(text).hexdigest()


def write_json(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one, even after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, so that two writers do not write into each other's file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in files_below(path)) if path.is_dir() else path.stat().st_size


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits; of a folder, that of its files' names and digests."""
    digest = hashlib.sha256()
    if path.is_dir():
        for inner in files_below(path):
            digest.update(f"{inner.relative_to(path).as_posix()}\0{sha256_of(inner)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """SHA-256 that stands for a JSON value, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files_below(folder: Path) -> list[Path]:
    """In the order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _contents(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder or path == directory / MANIFEST:
            continue
        # What is not content: NFS keeps deleted but open files so, and a killed `write_json` leaves these.
        if path.name.startswith((".nfs", f".{MANIFEST}.", f".{CARD}.")):
            continue
        yield path


def _read_manifest(directory: Path) -> tuple[bytes, dict[str, FileEntry]]:
    try:
        text = (directory / MANIFEST).read_bytes()
        files: dict[str, FileEntry] = json.loads(text)["files"]
        valid = all(isinstance(entry["sha256"], str) and isinstance(entry["size"], int) for entry in files.values())
    except FileNotFoundError:
        raise ArtifactInvalidError(f"{directory} has no {MANIFEST}: it was never finished", advice=REMEDY) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid or not files:
        raise ArtifactInvalidError(f"{directory / MANIFEST} is not a manifest", advice=REMEDY)
    return text, files


def _matches(path: Path, entry: FileEntry, *, sizes_only: bool) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != entry["size"]:
        return False
    return sizes_only or sha256_of(path) == entry["sha256"]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
