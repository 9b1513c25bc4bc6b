"""Where an export goes: two verbs for a registry and a bucket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from finetune_api.exports import ConflictPolicy, ExportSpec, destination
from finetune_trainer.packaging import credentials


class Destination(Protocol):
    """A tag of a repository, or a folder of a bucket."""

    def holds(self, digest: str) -> bool:
        """Whether an export of this digest lies there, whole. Raises as `push`."""

    def push(self, folder: Path, annotations: dict[str, str]) -> str:
        """Bring a finished folder there, what marks it as whole last; return its digest, 64 hexadecimal digits, for a
        registry after `sha256:`. What is there already is not sent again.

        Raises UserInputError (DestinationRefused) on wrong credentials, a missing bucket, something else in its place;
        TrainerError (DestinationUnavailable, tried again) when the other side is away or fails.
        """


def open_destination(export: ExportSpec, run: int, run_hash: str) -> Destination:
    """Where this export of this run goes. Only the client that is needed is loaded."""
    uri = destination(export, run, run_hash)
    secret = credentials.of_export(export.name, os.environ)
    replace = export.conflict_policy is ConflictPolicy.REPLACE
    if uri.startswith("s3://"):
        from finetune_trainer.packaging.bucket import Bucket

        return Bucket.open(uri, secret, replace=replace)
    from finetune_trainer.packaging.registry import Registry

    return Registry.open(uri, secret, replace=replace)
