"""Checkpoints on the artifact volume: which one to go on from, which one is best, which ones may go.

A checkpoint is a folder `checkpoint-STEP` of transformers' making plus our manifest, written last. Only a folder
that matches its manifest is read: a half-written one would end training, a foreign one could run code (optimizer
and random states are pickles).
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_api.distribution import Strategy
from finetune_api.status import ResolvedValues
from finetune_trainer import artifacts
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.explanation import is_full

log = logging.getLogger(__name__)
NAME = re.compile(r"checkpoint-(\d+)")
LITTLE = 2**20  # bytes; a writer that failed for want of room leaves less than a block free
KEEP_NEWEST = 2  # beside the best one: the second is there for the day the first is damaged


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """`eval_loss` is the held-out loss of exactly these weights; None when they were not evaluated."""

    path: Path
    step: int
    eval_loss: float | None


LAYOUT = "layout.json"
WHOLE = "whole states"


def layout(resolved: ResolvedValues) -> str:
    """What a checkpoint's optimizer state is for: one with the same word can be gone on from. ZeRO has a file a
    process; all other strategies leave whole states, and with them any number of processes goes on."""
    strategy = resolved.strategy
    if strategy.zero_stage:
        return f"{strategy} in {resolved.processes} processes"
    return strategy.value if strategy is Strategy.FSDP2 else WHOLE


def layout_of(path: Path) -> str:
    """The word of a saved checkpoint; of one without, that was saved by one process."""
    try:
        return str(json.loads((path / LAYOUT).read_bytes())["layout"])
    except (OSError, ValueError, KeyError, TypeError):
        return WHOLE


def folders(directory: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that is named like a checkpoint, newest first, finished or not."""
    found = [(int(match[1]), path) for path in directory.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def newest(directory: Path) -> SavedCheckpoint | None:
    """The newest checkpoint that verifies; unfinished and damaged ones are passed over with a line in the log."""
    return next((found for _, path in folders(directory) if (found := _verified(path))), None)


def best(directory: Path) -> SavedCheckpoint | None:
    """The verified checkpoint with the lowest held-out loss, the later of equals; the newest when none has one."""
    saved = [found for _, path in folders(directory) if (found := _verified(path))]
    evaluated = [checkpoint for checkpoint in saved if checkpoint.eval_loss is not None]
    if not evaluated:
        return saved[0] if saved else None
    return min(evaluated, key=lambda checkpoint: (_rank(checkpoint), -checkpoint.step))


def rotate(directory: Path, keep: int = KEEP_NEWEST) -> None:
    """Remove all but the newest finished checkpoints and the best one, and unfinished ones older than the newest."""
    finished = [(step, path) for step, path in folders(directory) if artifacts.is_complete(path)]
    losses = {path: loss for step, path in finished if (loss := _eval_loss(path, step)) is not None}
    kept = {path for _, path in finished[:keep]} | ({min(losses, key=lambda path: losses[path])} if losses else set())
    for _, path in folders(directory):
        if finished and path not in kept:
            remove(path)


def remove(path: Path) -> None:
    """Remove a checkpoint. The manifest goes first, so that a half-removed one is never taken for a whole one."""
    (path / artifacts.MANIFEST).unlink(missing_ok=True)
    _late_score(path).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def score_later(path: Path, eval_loss: float) -> None:
    """Note the held-out loss of a finished checkpoint that was saved before it was measured.

    It lies beside the folder: to change the folder would be to risk it. The digest of the manifest binds it to
    exactly these weights.
    """
    digest = artifacts.sha256_of(path / artifacts.MANIFEST)
    artifacts.write_json(_late_score(path), json.dumps({"manifest": digest, "eval_loss": eval_loss}))


def has_no_room(directory: Path) -> bool:
    """Whether so little is left on the volume that a writer has just failed for want of more."""
    return shutil.disk_usage(directory).free < LITTLE


@contextmanager
def full_volume_named(directory: Path) -> Iterator[None]:
    """Of the libraries that write a checkpoint, safetensors does not say where there was no room, and PyTorch's writer
    only that it failed (RuntimeError). Raises OSError (ENOSPC) with the folder's name in their place."""
    try:
        yield
    except Exception as error:
        without_a_word = isinstance(error, RuntimeError) and has_no_room(directory)
        if not without_a_word and not is_full(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error


def is_scored(path: Path, step: int) -> bool:
    """Whether the held-out loss of exactly these weights is in the checkpoint's own history."""
    return _own_loss(path, step) is not None


def _verified(path: Path) -> SavedCheckpoint | None:
    step = int(path.name.rpartition("-")[2])
    if not artifacts.is_complete(path):
        log.warning("passing over %s: it was never finished", path.name)
        return None
    try:
        artifacts.verify(path)
    except (ArtifactInvalidError, OSError) as error:
        log.warning("passing over %s: %s", path.name, error)
        return None
    return SavedCheckpoint(path, step, _eval_loss(path, step))


def _eval_loss(path: Path, step: int) -> float | None:
    """Held-out loss of exactly these weights, measured before they were saved or later."""
    own = _own_loss(path, step)
    return _later_loss(path) if own is None else own


def _late_score(path: Path) -> Path:
    return path.with_name(f"{path.name}.score.json")


def _later_loss(path: Path) -> float | None:
    try:
        late = json.loads(_late_score(path).read_bytes())
        same = late["manifest"] == artifacts.sha256_of(path / artifacts.MANIFEST)
        return float(late["eval_loss"]) if same and math.isfinite(late["eval_loss"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _own_loss(path: Path, step: int) -> float | None:
    """Held-out loss at the checkpoint's own step, from transformers' trainer_state.json."""
    try:
        history = json.loads((path / "trainer_state.json").read_bytes())["log_history"]
        losses = [entry["eval_loss"] for entry in history if entry.get("step") == step and "eval_loss" in entry]
        return float(losses[-1]) if losses and math.isfinite(losses[-1]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rank(checkpoint: SavedCheckpoint) -> float:
    return math.inf if checkpoint.eval_loss is None else checkpoint.eval_loss
