"""Which checkpoint is gone on from, which is best, and which are removed."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer import artifacts
from finetune_trainer.training import checkpoints

# Of optimizer.pt on a file system of 3 MB.
PYTORCH = "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"


def save(directory: Path, step: int, eval_loss: float | None = None, *, finished: bool = True) -> Path:
    folder = directory / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    history = [{"step": step - 1, "eval_loss": 0.001}]  # of other weights: must not count
    if eval_loss is not None:
        history.append({"step": step, "eval_loss": eval_loss})
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (folder / "weights").write_text(f"weights of step {step}")
    if finished:
        artifacts.finish(folder)
    return folder


def steps(directory: Path) -> list[int]:
    return [step for step, _ in checkpoints.folders(directory)]


def test_newest_passes_over_unfinished_and_damaged_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 8)
    save(tmp_path, 10)
    (save(tmp_path, 20) / "weights").write_text("someone else's")
    (save(tmp_path, 30) / "weights").unlink()
    (save(tmp_path, 35) / "payload.pt").write_text("not ours")
    save(tmp_path, 40, finished=False)
    with caplog.at_level(logging.WARNING):
        found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 10  # by number, not by name: "checkpoint-8" sorts after it
    for step in (20, 30, 35, 40):
        assert f"passing over checkpoint-{step}:" in caplog.text


def test_no_checkpoint_no_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "runs").mkdir()
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.best(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({2: 3.0, 4: 1.0, 6: 2.0}, 4),
        ({2: 1.0, 4: 1.0, 6: 2.0}, 4),  # of equals the one that saw more
        ({2: None, 4: 2.0, 6: None}, 4),
        ({2: None, 4: None}, 4),  # nothing was evaluated: the newest
        ({2: 2.0, 4: float("nan")}, 2),
    ],
)
def test_best_has_the_lowest_loss_of_its_own_step(
    tmp_path: Path, losses: dict[int, float | None], expected: int
) -> None:
    for step, loss in losses.items():
        save(tmp_path, step, loss)
    found = checkpoints.best(tmp_path)
    assert found is not None
    assert found.step == expected


def test_best_is_never_a_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, 2, 2.0)
    (save(tmp_path, 4, 1.0) / "weights").write_text("changed")
    found = checkpoints.best(tmp_path)
    assert found is not None
    assert found.step == 2


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}, [4, 3, 1]),
        ({1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}, [4, 3]),
        ({1: None, 2: None, 3: None}, [3, 2]),
    ],
)
def test_rotation_keeps_two_and_the_best(tmp_path: Path, losses: dict[int, float | None], kept: list[int]) -> None:
    for step, loss in losses.items():
        save(tmp_path, step, loss)
    checkpoints.rotate(tmp_path)
    assert steps(tmp_path) == kept


def test_rotation_clears_unfinished_ones_but_never_the_last_hope(tmp_path: Path) -> None:
    save(tmp_path, 1, finished=False)
    checkpoints.rotate(tmp_path)
    assert steps(tmp_path) == [1]
    save(tmp_path, 2)
    checkpoints.rotate(tmp_path)
    assert steps(tmp_path) == [2]


@pytest.mark.parametrize(
    ("free", "words", "named"),
    [
        (0, PYTORCH, True),
        (2**30, PYTORCH, False),
        (2**30, "Error while serializing: I/O error: No space left on device (os error 28)", True),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, words: str, named: bool
) -> None:
    room: Any = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with pytest.raises((OSError, RuntimeError)) as caught, checkpoints.full_volume_named(tmp_path):
        raise RuntimeError(words)
    assert isinstance(caught.value, OSError) is named
    assert not named or f"[Errno {errno.ENOSPC}] No space left on device: '{tmp_path}'" == str(caught.value)
