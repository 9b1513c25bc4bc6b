"""Look whether the data is still what a run has read: a short pod beside the runs, for `triggers.datasetPoll`.

Versions are compared first. Where they differ, the data itself is, as far as it is small or mounted, so that a server
that names another version each time starts nothing; and what is different must be the same in a second look a moment
later, so that nothing begins while somebody writes.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.conditions import FailureReason, Stage
from finetune_api.dataset_poll import PollOrder
from finetune_api.reports import Summary
from finetune_api.run_config import RunConfig
from finetune_api.status import DatasetStatus
from finetune_trainer import artifacts, frame
from finetune_trainer.errors import UserInputError
from finetune_trainer.sources.datafile import fetch_data, joined
from finetune_trainer.sources.version import Versions, fingerprint, versions_of

log = logging.getLogger(__name__)

VARIABLE = "FINETUNE_POLL"
FETCHED_BYTES = 256 * 2**20  # of all files that are not mounted, to compare the data itself
PAUSE_SECONDS = 15.0
SCHEDULE = "use triggers.schedule in place of triggers.datasetPoll, or a source that names its versions"


@dataclass(frozen=True, slots=True)
class Look:
    """The sources at one moment; `sha256` of the data itself, None where it is too large to be fetched for this."""

    versions: Versions
    sha256: str | None = None

    @property
    def fingerprint(self) -> str:
        """Raises UserInputError (SourceUnsteady) that names the files whose sources name no version."""
        found = fingerprint(self.versions)
        if found is None:
            unknown = ", ".join(place for place, version in self.versions.items() if version is None)
            raise UserInputError(
                f"{unknown}: the server tells neither ETag nor Last-Modified, and the file is too large to be compared",
                advice=SCHEDULE,
                reason=FailureReason.SOURCE_UNSTEADY,
            )
        return found


def run(
    config_path: Path,
    environment: Mapping[str, str],
    sources: Path,
    termination_log: Path | None,
    pause: float = PAUSE_SECONDS,
) -> int:
    """Leave what was found in the termination message, as Prepare's summary has it. Returns the exit code; errors.py
    says what it means."""
    config = None
    try:
        config = frame.load_config(config_path)
        frame.set_up_log("Poll", config)
        dataset = look(config, PollOrder.from_record(environment.get(VARIABLE) or "{}"), sources, pause)
    except BaseException as error:
        return frame.report_failure(Stage.PREPARE, error, termination_log, config)
    frame.write_message(
        termination_log, Summary(stage=Stage.PREPARE, ok=True, run=config.run, hash=config.hash, dataset=dataset)
    )
    return 0


def look(config: RunConfig, known: PollOrder, sources: Path, pause: float) -> DatasetStatus:
    """The data's fingerprint, the known one where it is the same data; and its digest where the data was compared and
    is other data. Raises UserInputError (SourceUnavailable, and SourceUnsteady where two looks differ)."""
    first = Look(versions_of(config.dataset, sources, config.policy))
    if first.fingerprint == known.fingerprint or (known.fingerprint, known.sha256) == (None, None):
        log.info("data: fingerprint %s, %s", first.fingerprint, "as it was" if known.fingerprint else "seen first")
        return DatasetStatus(fingerprint=first.fingerprint)
    first = Look(first.versions, _digest(config, sources))
    if known.sha256 is not None and first.sha256 == known.sha256:
        log.info("data: other versions are named, but the data is the same")
        return DatasetStatus(fingerprint=known.fingerprint or first.fingerprint)
    time.sleep(pause)
    again = Look(versions_of(config.dataset, sources, config.policy))
    if again.fingerprint == known.fingerprint:
        log.info("data: fingerprint %s, as it was before what was seen a moment ago", again.fingerprint)
        return DatasetStatus(fingerprint=again.fingerprint)
    if again.versions != first.versions and (first.sha256 is None or _digest(config, sources) != first.sha256):
        _refuse_unsteady(first, again)
    log.info("data: fingerprint %s, which was %s", again.fingerprint, known.fingerprint)
    return DatasetStatus(fingerprint=again.fingerprint, sha256=first.sha256)


def _digest(config: RunConfig, sources: Path) -> str | None:
    """Of the data, as Prepare tells it; None where more would have to be fetched than this is worth."""
    digests, left = [], FETCHED_BYTES
    for _, data in config.dataset.files:
        remote = data.source is not None and not data.source.startswith("pvc://")
        policy = config.policy.model_copy(update={"max_bytes": left}) if remote else config.policy
        with tempfile.TemporaryDirectory() as scratch:
            try:
                path = fetch_data(data, sources=sources, scratch=Path(scratch), policy=policy)
            except UserInputError as error:
                log.info("data: compared by its versions alone: %s", error)
                return None
            left -= artifacts.size_of(path) if remote else 0
            digests.append(artifacts.sha256_of(path))
    return joined(digests)


def _refuse_unsteady(first: Look, again: Look) -> None:
    moved = ", ".join(place for place, version in again.versions.items() if first.versions[place] != version)
    raise UserInputError(
        f"{moved}: two looks, one right after the other, found different data",
        advice="wait until it is written whole: it is looked at again later; if a server names another version each "
        "time, use triggers.schedule in place of triggers.datasetPoll",
        reason=FailureReason.SOURCE_UNSTEADY,
    )
