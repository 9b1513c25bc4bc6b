"""Out of memory in one of several processes: no process can go on without the others, so the next attempt of all
takes half the micro batch. What it shall be lies on the volume, for every pod and for every later attempt."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from finetune_trainer import artifacts

NAME = "halved.json"


class Halved(BaseModel):
    """Examples of a forward pass at most, and what the user is told."""

    micro_batch_size: int
    note: str


def halved(run_dir: Path) -> Halved | None:
    """What an earlier attempt left, if memory did not suffice for it."""
    try:
        return Halved.model_validate_json((run_dir / NAME).read_bytes())
    except (OSError, ValueError):
        return None


def halve(run_dir: Path, half: Halved) -> None:
    """Once a run; a second time nothing is written, and the failure is the end."""
    if halved(run_dir) is None:
        artifacts.write_json(run_dir / NAME, half.model_dump_json())
