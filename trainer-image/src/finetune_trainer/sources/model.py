"""The base model, once in the artifact volume: `MODELS/SLUG@REVISION/`, shared by the jobs of a namespace."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune_api.conditions import FailureReason
from finetune_api.run_config import SourcePolicy
from finetune_api.spec import BaseModelSpec
from finetune_trainer import artifacts
from finetune_trainer.errors import ArtifactInvalidError, UserInputError
from finetune_trainer.sources import hub, mounted, s3
from finetune_trainer.sources.location import S3, Https, Hub, Location, Pvc, parse_source, slug
from finetune_trainer.sources.model_files import check_model_folder, wanted_files

log = logging.getLogger(__name__)

DIGEST_LENGTH = 12  # hexadecimal digits of a revision in a folder name: no two models of a namespace share them


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A checked model folder. `revision` is the commit of a hub model, or the digest of the files."""

    path: Path
    revision: str


def fetch_model(spec: BaseModelSpec, *, models: Path, sources: Path, policy: SourcePolicy, owner: str) -> BaseModel:
    """Have the base model in `models`, fetching it only when it is not there yet.

    `owner` names the run: what an earlier, killed attempt of the same run left half done is removed.
    Safe when several jobs fetch the same model at once: each into a folder of its own, and the first rename wins.
    Raises UserInputError (ModelAccess, ModelInvalid, SourceUnavailable).
    """
    if spec.source is None:
        raise UserInputError(
            "the run names another job's model, but not which: it was not resolved",
            advice="let the control plane begin the run, or give baseModel.source",
            reason=FailureReason.SPEC_INVALID,
        )
    location = parse_source(spec.source)
    models.mkdir(parents=True, exist_ok=True)
    for leftover in models.glob(f".{owner}.{'[0-9a-f]' * 8}*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    part = models / f".{owner}.{secrets.token_hex(4)}.part"
    try:
        return _fetch(location, spec, models, sources, policy, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fetch(
    location: Location, spec: BaseModelSpec, models: Path, sources: Path, policy: SourcePolicy, part: Path
) -> BaseModel:
    match location:
        case Hub():
            revision = hub.resolve_revision(location, spec.revision)
            target = models / f"{slug(location)}@{revision[:DIGEST_LENGTH]}"
            if not is_intact(target):
                hub.fetch_model(location, revision, part, policy)
                check_model_folder(part, spec.told)
                artifacts.finish(part)
                move(part, target)
            return BaseModel(target, revision)
        case Pvc():
            folder = mounted.claim_path(sources, location)
            _copy_folder(folder, spec.told, part)
        case S3():
            s3.fetch_model(location, part, policy)
        case Https():
            raise UserInputError(
                f"{spec.told}: a model is a folder, which https:// cannot list",
                advice="use hf://, pvc:// or s3://",
                reason=FailureReason.SPEC_INVALID,
            )
    # The identity of such a model is its content, so it has to be read before it can be known.
    check_model_folder(part, spec.told)
    digest = artifacts.finish(part)
    target = models / f"{slug(location)}@{digest[:DIGEST_LENGTH]}"
    if not is_intact(target):
        move(part, target)
    return BaseModel(target, digest)


def is_intact(target: Path) -> bool:
    """Whether the folder is finished and all of it is there."""
    if not artifacts.is_complete(target):
        return False
    try:
        artifacts.verify(target, sizes_only=True)
    except ArtifactInvalidError as error:
        log.warning("base model: %s; it is fetched again", error)
        return False
    log.info("base model: already in %s", target.name)
    return True


def move(part: Path, target: Path) -> None:
    """Give the finished folder its name. Another job may have done so in the meantime; then ours is not needed."""
    if target.exists() and not is_intact(target):
        damaged = part.with_suffix(".damaged.part")
        target.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        part.rename(target)
    except OSError:
        if not artifacts.is_complete(target):
            raise


def _copy_folder(folder: Path, source: str, part: Path) -> None:
    """Copy the model's files. Not links: whoever changes the claim later must not change a finished artifact."""
    if not folder.is_dir():
        raise UserInputError(
            f"{source} is not a folder", advice="name the model's folder", reason=FailureReason.MODEL_INVALID
        )
    names = wanted_files((path.name for path in folder.iterdir() if path.is_file()), source)
    part.mkdir(parents=True)
    for name in names:
        log.info("base model: copies %s", name)
        if not (folder / name).resolve().is_relative_to(folder):
            raise UserInputError(
                f"{source}: {name} leads out of the folder",
                advice="put the files themselves into the folder",
                reason=FailureReason.MODEL_INVALID,
            )
        shutil.copyfile(folder / name, part / name)
        os.chmod(part / name, 0o644)
