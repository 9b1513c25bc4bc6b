"""Runs that the cluster has forgotten and the volume has not.

After a restore into an empty cluster a job begins at run 1 again, though the claim may hold what it asks for as run 3.
The same hash stands for the same inputs, so that folder is what this run would make: it is taken over.
"""

from __future__ import annotations

import logging
from pathlib import Path

from finetune_api.reports import Summary
from finetune_trainer.artifacts import write_json
from finetune_trainer.context import StageContext

log = logging.getLogger(__name__)


def adopt_former_run(context: StageContext) -> None:
    """Make the folder of an earlier number with this run's very hash this run's own, reports included.

    Earlier: of a higher number. A control plane that remembers a run counts on from it; so nobody knows of that folder
    any more. Cut short after the move, it is completed by the next stage.
    """
    own = context.run_dir
    if not own.exists():
        former = _former(context)
        if former is None:
            return
        former.rename(own)
        log.info("the folder %s has the same inputs and is taken over", former.name)
    for path in sorted(own.glob("reports/*.json")):
        _rename_in(path, context)


def _former(context: StageContext) -> Path | None:
    """The newest of the forgotten runs with the same hash and a finished Prepare."""
    own = context.run_dir
    suffix = own.name[own.name.find("-") :]
    found = {_number(path): path for path in own.parent.glob(f"*{suffix}") if _belongs(path, context)}
    newest = max(found, default=0)
    return found[newest] if newest > context.config.run else None


def _belongs(folder: Path, context: StageContext) -> bool:
    summary = _summary(folder / "reports" / "prepare.json")
    return summary is not None and summary.ok and summary.hash == context.config.hash


def _number(folder: Path) -> int:
    digits = folder.name.partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _rename_in(path: Path, context: StageContext) -> None:
    """Correct the number, and the path that has it, in a stage's report. Other reports name neither."""
    summary = _summary(path)
    if summary is None or summary.hash != context.config.hash or summary.run == context.config.run:
        return
    model = summary.model
    if model is not None:
        model = model.model_copy(update={"path": f"{context.config.paths.run}/{Path(model.path).name}"})
    renamed = summary.model_copy(update={"run": context.config.run, "model": model})
    write_json(path, renamed.model_dump_json(by_alias=True, exclude_none=True))


def _summary(path: Path) -> Summary | None:
    try:
        return Summary.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
