"""Which version of the data the sources have now, told with little transfer.

hf://       the file's blob in the newest commit: a commit that leaves the file alone is no change
s3://       ETag and size; not the version's id, which is another one when the same bytes are uploaded again
https://    ETag, else Last-Modified and length, else a digest of the content, of at most 64 MiB
pvc://, ConfigMap  a digest of the content, of at most 256 MiB; else size and time of change of each file
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from finetune_api.dataset import DataFile, DatasetSpec
from finetune_api.run_config import SourcePolicy
from finetune_trainer import artifacts
from finetune_trainer.errors import TrainerError
from finetune_trainer.sources import https, hub, mounted, s3
from finetune_trainer.sources.location import S3, Https, Hub, Pvc, parse_source

log = logging.getLogger(__name__)

READ_BYTES = 256 * 2**20  # of a volume: seconds, also on a network's
Versions = Mapping[str, str | None]
"""By the place of a file in the spec; None where its source names no version."""


def versions_of(spec: DatasetSpec, sources: Path, policy: SourcePolicy) -> Versions:
    """Of all files. Raises UserInputError and TrainerError as `fetch_data` does."""
    return {place: version_of(data, sources, policy) for place, data in spec.files}


def version_of(data: DataFile, sources: Path, policy: SourcePolicy) -> str | None:
    """Equal as long as the file is the same; None where that cannot be told."""
    if data.config_map_ref:
        return _mounted(mounted.config_map_path(sources, data.config_map_ref))
    location = parse_source(data.source or "")
    match location:
        case Pvc():
            return _mounted(mounted.claim_path(sources, location))
        case Hub():
            return hub.version(location)
        case S3():
            return s3.version(location)
        case Https():
            return https.version(location, policy, os.environ.get("HTTPS_AUTHORIZATION"))


def fingerprint(versions: Versions) -> str | None:
    """16 hexadecimal digits that stand for all of them; None where one is not known."""
    if None in versions.values():
        return None
    return hashlib.sha256(json.dumps(list(versions.items())).encode()).hexdigest()[:16]


def fingerprint_before_reading(spec: DatasetSpec, sources: Path, policy: SourcePolicy) -> str | None:
    """What Prepare leaves for later looks. Taken before anything is read, so that they find a change meanwhile. What is
    wrong with a source is told by who reads it."""
    try:
        return fingerprint(versions_of(spec, sources, policy))
    except (TrainerError, OSError) as error:
        log.info("data: its versions are not known: %s", error)
        return None


def _mounted(path: Path) -> str:
    if artifacts.size_of(path) <= READ_BYTES:
        return f"sha256 {artifacts.sha256_of(path)}"
    files = artifacts.files_below(path) if path.is_dir() else [path]
    facts = [(each.relative_to(path).as_posix(), each.stat()) for each in files]
    return f"files {[(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts]}"
