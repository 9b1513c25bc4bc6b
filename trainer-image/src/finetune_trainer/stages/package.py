"""Package: make the exports that are asked for, and bring each to its place.

Each is done for itself: what one cannot do does not keep another from being done, and what was done is found again.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from finetune_api.conditions import FailureReason, Stage
from finetune_api.exports import ExportSpec, destination
from finetune_api.package import ExportStatus, PackageInputs, PackageSummary, TrackerStatus
from finetune_api.reasons import AGAIN_CODES
from finetune_api.reports import StageFailure, Summary
from finetune_api.tracking import Tracker
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.errors import InterruptedStageError, PackageError, TrainerError, UserInputError
from finetune_trainer.explanation import explain
from finetune_trainer.packaging.comparison import Difference
from finetune_trainer.packaging.destination import open_destination
from finetune_trainer.packaging.formats import FORMATS
from finetune_trainer.packaging.model_card import leave_card
from finetune_trainer.packaging.tuned import Tuned, open_tuned
from finetune_trainer.tracking.story import tell
from finetune_trainer.tracking.trackers import track

log = logging.getLogger(__name__)

VARIABLE = "FINETUNE_PACKAGE"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of an export that is done: `key` stands for what it was made of, and for where it went."""

    key: str
    status: ExportStatus

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """None where there is none, or none that this version can read."""
        try:
            found = json.loads(path.read_bytes())
            return cls(str(found["key"]), ExportStatus.model_validate(found["status"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        status = self.status.model_dump(mode="json", by_alias=True)
        artifacts.write_json(path, json.dumps({"key": self.key, "status": status}, indent=1))


def run(context: StageContext) -> Summary:
    """Do the stage. Raises PackageError, with what was done all the same, when an export failed."""
    inputs = package_inputs(os.environ)
    _remove_leftovers(context)
    failures: list[tuple[StageFailure, int]] = []
    trackers = list(_tried(_tracking(context, inputs), failures))
    tuned = open_tuned(context) if inputs.exports else None
    exports = list(_tried(_exporting(context, tuned, inputs), failures)) if tuned else []
    summary = PackageSummary(exports=exports, trackers=trackers)
    if failures:
        raise _all(failures, summary)
    return Summary(stage=Stage.PACKAGE, ok=True, package=summary)


Task = tuple[str, Callable[[], T]]


def _tracking(context: StageContext, inputs: PackageInputs) -> Iterator[Task[TrackerStatus]]:
    for tracker in inputs.tracking.trackers:
        yield f"tracker {tracker}", partial(_track, context, inputs, tracker)


def _track(context: StageContext, inputs: PackageInputs, tracker: Tracker) -> TrackerStatus:
    status = track(context, inputs, tracker, tell(context))
    log.info("tracker %s has the run %s", tracker, status.url)
    return status


def _exporting(context: StageContext, tuned: Tuned, inputs: PackageInputs) -> Iterator[Task[ExportStatus]]:
    for export in inputs.exports:
        yield f"export {export.name}", partial(_export, context, tuned, export)


def _tried(tasks: Iterable[Task[T]], failures: list[tuple[StageFailure, int]]) -> Iterator[T]:
    """What went well; what did not is added to `failures`."""
    for name, do in tasks:
        try:
            yield do()
        except InterruptedStageError:
            raise
        except Exception as error:
            failure, exit_code = explain(error)
            log.error("%s: %s", name, failure.message, exc_info=error if exit_code == 1 else None)
            failures.append((failure.model_copy(update={"message": f"{name}: {failure.message}"}), exit_code))


def package_inputs(environment: Mapping[str, str]) -> PackageInputs:
    """What is asked for. Raises UserInputError (SpecInvalid) that names the variable."""
    try:
        return PackageInputs.from_record(environment.get(VARIABLE, ""))
    except ValueError as error:
        raise UserInputError(
            f"{VARIABLE} does not say what to export: {error}",
            advice='set it to JSON, for example {"exports": [{"name": "whole"}]}',
            reason=FailureReason.SPEC_INVALID,
        ) from error


def _all(failures: list[tuple[StageFailure, int]], done: PackageSummary) -> PackageError:
    """One error for all. One that may right itself goes before one that does not: its Job is tried again."""
    first, exit_code = min(failures, key=lambda each: each[1] not in (1, *AGAIN_CODES))
    text = "; ".join([first.message, *(failure.message for failure, _ in failures if failure is not first)])
    return PackageError(text, advice=first.advice, reason=first.reason, exit_code=exit_code, done=done)


def _export(context: StageContext, tuned: Tuned, export: ExportSpec) -> ExportStatus:
    config = context.config
    folder, record = context.exports_dir / export.name, context.exports_dir / f"{export.name}.json"
    key = artifacts.digest_of([export.settings, tuned.sha256, config.hash])
    target = open_destination(export, config.run, config.hash) if export.to else None
    known = Record.read(record)
    if known is not None and known.key == key:
        there = target.holds(known.status.digest) if target else _holds(folder, known.status.digest)
        if there:
            log.info("export %s was done before and is there", export.name)
            return known.status
    record.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    digest, measured = _make(context, tuned, export, folder)
    size = artifacts.size_of(folder)
    if target is not None:
        digest = target.push(folder, _annotations(context, export))
        shutil.rmtree(folder)  # it lies where it was wanted; on the claim it would only take room
    status = ExportStatus(
        name=export.name,
        digest=digest,
        bytes=size,
        difference=float(f"{measured.largest:.3g}"),
        agreement=float(f"{measured.agreement:.3g}"),
    )
    Record(key, status).write(record)
    log.info("export %s is done: %s", export.name, destination(export, config.run, config.hash) or folder)
    return status


def _make(context: StageContext, tuned: Tuned, export: ExportSpec, folder: Path) -> tuple[str, Difference]:
    """The finished folder, which gets its name when it is whole: the digest of its manifest, and how it was proven."""
    scratch = context.exports_dir / f".{export.name}-{secrets.token_hex(4)}"
    scratch.mkdir(parents=True)
    try:
        measured = FORMATS[export.format](tuned, export, scratch)
        leave_card(context.card_path, scratch, export.format)
        digest = artifacts.finish(scratch)
        scratch.rename(folder)
        return digest, measured
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _holds(folder: Path, digest: str) -> bool:
    try:
        return artifacts.verify(folder) == digest
    except (OSError, ValueError, TrainerError):
        return False


def _annotations(context: StageContext, export: ExportSpec) -> dict[str, str]:
    """Lineage, on the image."""
    config = context.config
    return {
        "org.opencontainers.image.title": config.tuned_name,
        "org.opencontainers.image.description": f"{config.base_name} tuned by {config.namespace}/{config.job}",
        "finetune-operator.io/job": f"{config.namespace}/{config.job}",
        "finetune-operator.io/run": str(config.run),
        "finetune-operator.io/run-hash": config.hash,
        "finetune-operator.io/format": export.format.value,
    }


def _remove_leftovers(context: StageContext) -> None:
    """Half-made exports of a pod that was killed."""
    for path in context.exports_dir.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
