"""The base of a run that goes on from another one's model: that model's base, or the two merged.

All that a run needs later is brought to its own claim, so that the other job and its files may go.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from pathlib import Path

from transformers import AutoTokenizer

from finetune_api.conditions import FailureReason
from finetune_api.lineage import ContinuedFrom
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.errors import ArtifactInvalidError, UserInputError
from finetune_trainer.methods import proof
from finetune_trainer.methods.continued import refuse_other_adapters
from finetune_trainer.methods.dora import merge
from finetune_trainer.methods.proof import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from finetune_trainer.sources import mounted
from finetune_trainer.sources.location import Pvc, parse_source
from finetune_trainer.sources.model import DIGEST_LENGTH, BaseModel, is_intact, move
from finetune_trainer.sources.model_files import check_model_folder
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.tasks.table import KINDS
from finetune_trainer.training.inputs import FACTS, load_model
from finetune_trainer.training.output import CPU

log = logging.getLogger(__name__)


def fetch_continued(context: StageContext, continued: ContinuedFrom) -> BaseModel:
    """Have the base of this run in the namespace's models, and an adapter that is gone on with in the run's folder.

    Raises UserInputError (ModelInvalid) when the other run's model is gone, or is not the one that was promoted.
    """
    told = f"run {continued.model.run} of {continued.job}"
    directory = _verified(context, continued, told)
    context.models_dir.mkdir(parents=True, exist_ok=True)
    part = context.models_dir / f".{context.config.job}-r{context.config.run}.{secrets.token_hex(4)}.part"
    try:
        if continued.continues:
            refuse_other_adapters(directory)
            _keep_adapter(directory, context.continued_dir)
            return _base(context, continued, part, told)
        return _stacked(context, continued, directory, part, told)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _verified(context: StageContext, continued: ContinuedFrom, told: str) -> Path:
    directory = _place(context, continued.model.uri, told)
    try:
        digest = artifacts.verify(directory)
    except ArtifactInvalidError as error:
        raise _invalid(f"the model of {told} is not whole: {error.message}") from error
    if continued.model.sha256 not in (None, digest):
        raise _invalid(f"the model of {told} was changed since it was promoted")
    return directory


def _place(context: StageContext, uri: str, told: str) -> Path:
    location = parse_source(uri)
    if not isinstance(location, Pvc):
        raise _invalid(f"{told} names no folder of a claim: {uri}")
    folder = mounted.claim_path(context.sources, location)
    if not folder.is_dir():
        raise _invalid(f"the files of {told} are gone: {uri}")
    return folder


def _keep_adapter(directory: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copyfile(directory / name, target / name)
    artifacts.finish(target)


def _base(context: StageContext, continued: ContinuedFrom, part: Path, told: str) -> BaseModel:
    """The base of the other run, under the same name; copied when it lies on another claim."""
    found = _place(context, continued.model.base_uri or "", told)
    target = context.models_dir / found.name
    if not is_intact(target):
        log.info("base model: copies that of %s", told)
        artifacts.verify(found)
        shutil.copytree(found, part)
        move(part, target)
    revision = (continued.model.source or "").rpartition("@")[2] or artifacts.sha256_of(target / artifacts.MANIFEST)
    return BaseModel(target, revision)


def _stacked(context: StageContext, continued: ContinuedFrom, directory: Path, part: Path, told: str) -> BaseModel:
    """A whole model in the type of its base, as the method DoRA makes one: a layer at a time in float32."""
    digest = artifacts.sha256_of(directory / artifacts.MANIFEST)
    target = context.models_dir / f"{continued.job}-r{continued.model.run}@{digest[:DIGEST_LENGTH]}"
    if is_intact(target):
        return BaseModel(target, digest)
    if continued.model.kind == "Model":
        log.info("base model: copies that of %s", told)
        shutil.copytree(directory, part, ignore=shutil.ignore_patterns(artifacts.MANIFEST))
    else:
        log.info("base model: merges the adapter of %s into its base", told)
        _merge(context, continued, directory, part, told)
    check_model_folder(part, told)
    artifacts.finish(part)
    move(part, target)
    return BaseModel(target, digest)


def _merge(context: StageContext, continued: ContinuedFrom, directory: Path, part: Path, told: str) -> None:
    base_dir = _place(context, continued.model.base_uri or "", told)
    kind = KINDS[continued.model.task or context.config.task]
    facts = directory / FACTS
    known = Facts.from_json(facts.read_text(encoding="utf-8")) if facts.exists() else Facts()
    base = load_model(base_dir, CPU, kind, known, dtype=proof.stored_dtype(base_dir))
    merge(proof.on_base(directory, base.model), directory).save_pretrained(part)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    tokenizer.save_pretrained(part)


def _invalid(message: str) -> UserInputError:
    return UserInputError(
        message,
        advice="name another run in baseModel.fineTuneJob, or make it anew with a new spec.rerunToken there and here",
        reason=FailureReason.MODEL_INVALID,
    )
