"""Runs that the cluster has forgotten and the volume has not.

After a restore into an empty cluster a job begins at run 1 again, though the claim may hold what it asks for as run 3.
The same hash stands for the same inputs, so that folder is what this run would make: it is taken over. The hash of a
run that a schedule or a look at the data began has its occasion in it as well, which Prepare's report tells.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from finetune_api.conditions import Stage, Trigger
from finetune_api.job import occasion_hash
from finetune_api.reports import Summary
from finetune_trainer.artifacts import write_json
from finetune_trainer.context import StageContext, report_in

log = logging.getLogger(__name__)


def adopt_former_run(context: StageContext, stage: Stage) -> None:
    """Make the folder of an earlier number with this run's inputs this run's own, reports included.

    Earlier: of a higher number. A control plane that remembers a run counts on from it; so nobody knows of that folder
    any more. What an older run left under this run's name gives way to it when the run begins, and is kept beside it.
    Cut short after the move, it is completed by the next stage.
    """
    own = context.run_dir
    if not own.exists() or (stage is Stage.PREPARE and context.config.trigger is Trigger.CREATED):
        _take_over(context)
    prepared = _summary(own, Stage.PREPARE)
    if prepared is not None:
        for path in sorted(own.glob("reports/*.json")):
            _rename_in(path, {context.config.hash, _hash_by(prepared, context)}, context)


def _take_over(context: StageContext) -> None:
    own, former = context.run_dir, _former(context)
    if former is None:
        return
    if own.exists():
        aside = own.with_name(f"{own.name}.before-{secrets.token_hex(4)}")
        own.rename(aside)
        log.info("the folder %s is older than %s, and is kept as %s", own.name, former.name, aside.name)
    former.rename(own)
    log.info("the folder %s has the same inputs and is taken over", former.name)


def _former(context: StageContext) -> Path | None:
    """The newest of the forgotten runs with the same inputs, unless this run's own files are newer."""
    own, run = context.run_dir, context.config.run
    later = [path for path in own.parent.glob("*-*") if _number(path) > run and _belongs(path, context)]
    newest = max([own, *later], key=_age)
    return newest if newest != own else None


def _age(folder: Path) -> tuple[str, int]:
    """Grows with the time when the data was read, which reports of earlier versions do not tell, then by number."""
    prepared = _summary(folder, Stage.PREPARE)
    return (prepared.begun_by.time if prepared and prepared.begun_by else "", _number(folder))


def _belongs(folder: Path, context: StageContext) -> bool:
    """With the same hash a finished Prepare is enough. What another occasion began must have come to a model: where it
    has not, that occasion is met anew."""
    prepared, trained = (_summary(folder, stage) for stage in (Stage.PREPARE, Stage.TRAIN))
    if prepared is None or not prepared.ok:
        return False
    if prepared.hash == context.config.hash:
        return True
    done = trained is not None and trained.ok and trained.hash == prepared.hash
    return done and context.config.trigger is Trigger.CREATED and prepared.hash == _hash_by(prepared, context)


def _hash_by(prepared: Summary, context: StageContext) -> str:
    """The hash that the run which read this data has if its inputs are those of this one."""
    begun, inputs = prepared.begun_by, context.config.hash
    return occasion_hash(inputs, begun.trigger, begun.occasion) if begun else inputs


def _number(folder: Path) -> int:
    digits = folder.name.partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _rename_in(path: Path, hashes: set[str], context: StageContext) -> None:
    """Correct number and hash, and the path that has them, in a stage's report. Other reports name neither."""
    summary, config = _read(path), context.config
    if summary is None or summary.hash not in hashes or (summary.run, summary.hash) == (config.run, config.hash):
        return
    model = summary.model
    if model is not None:
        model = model.model_copy(update={"path": f"{config.paths.run}/{Path(model.path).name}"})
    renamed = summary.model_copy(update={"run": config.run, "hash": config.hash, "model": model})
    write_json(path, renamed.model_dump_json(by_alias=True, exclude_none=True))


def _summary(folder: Path, stage: Stage) -> Summary | None:
    return _read(report_in(folder, stage))


def _read(path: Path) -> Summary | None:
    try:
        return Summary.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
