"""One data file as a local path, wherever it comes from."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from finetune_api.conditions import FailureReason
from finetune_api.run_config import SourcePolicy
from finetune_api.spec import DataFile
from finetune_trainer import artifacts
from finetune_trainer.errors import DIVIDE, UserInputError
from finetune_trainer.sources import https, hub, mounted, s3
from finetune_trainer.sources.location import S3, Https, Hub, Pvc, parse_source

log = logging.getLogger(__name__)


def describe(data: DataFile) -> str:
    """The source in words, for people."""
    return data.told or "nowhere"


def name_of(data: DataFile) -> str:
    """What the user calls the file: the key, or the last part of the source. Its ending says what it should hold."""
    if data.config_map_ref:
        return data.config_map_ref.key
    return PurePosixPath(urlsplit(data.source or "").path).name


def joined(digests: Sequence[str]) -> str:
    """Digest of the data as read: the one file's own, or one of the digests of all files."""
    return digests[0] if len(digests) == 1 else hashlib.sha256(":".join(digests).encode()).hexdigest()


def fetch_data(data: DataFile, *, sources: Path, scratch: Path, policy: SourcePolicy) -> Path:
    """A local path of the file, or of a folder on a claim: in place for claims and ConfigMaps, downloaded into
    `scratch` otherwise.

    Raises UserInputError (SourceUnavailable, SpecInvalid) that names the source and the remedy.
    """
    path = _fetch(data, sources, scratch, policy)
    if not path.is_file() and not path.is_dir():
        raise UserInputError(
            f"{describe(data)} is neither a file nor a folder",
            advice="name the file itself: JSON Lines, JSON, CSV or Parquet",
            reason=FailureReason.SOURCE_UNAVAILABLE,
        )
    size = artifacts.size_of(path)
    if size > policy.max_bytes:
        raise UserInputError(
            f"{describe(data)} has {size} bytes, and {policy.max_bytes} are allowed",
            advice=DIVIDE,
        )
    log.info("data: %s, %s bytes", describe(data), f"{size:,}")
    return path


def _fetch(data: DataFile, sources: Path, scratch: Path, policy: SourcePolicy) -> Path:
    if data.config_map_ref:
        return mounted.config_map_path(sources, data.config_map_ref)
    location = parse_source(data.source or "")
    match location:
        case Pvc():
            return mounted.claim_path(sources, location)
        case Hub():
            return hub.fetch_file(location, scratch, policy)
        case S3():
            return s3.fetch_file(location, scratch / "data", policy)
        case Https():
            return https.fetch_file(location, scratch / "data", policy, os.environ.get("HTTPS_AUTHORIZATION"))
