"""The removal of files: exactly what was named, however hostile or half-removed the volume is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api.retention import RemovalSummary
from finetune_trainer import removal
from finetune_trainer.__main__ import main

RUN, OTHER = "1-0123abcd", "2-0123abcd"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A claim with two runs of a job, a run of another job, and a base model."""
    root = tmp_path / "claim"
    for folder in (f"team-a/travel/runs/{RUN}", f"team-a/travel/runs/{OTHER}", "team-a/other/runs/1-0123abcd"):
        for file in ("model/adapter.safetensors", "checkpoints/checkpoint-5/weights", "reports/train.json"):
            path = root / folder / file
            path.parent.mkdir(parents=True)
            path.write_text("x" * 100)
    (root / "team-a/models/base").mkdir(parents=True)
    (root / "team-a/models/base/weights").write_text("base")
    return root


def remove(root: Path, *removals: dict[str, Any], runs: str = "team-a/travel/runs") -> tuple[int, str]:
    """Exit code and last words."""
    words = root.parent / "words"
    told = json.dumps({"runs": runs, "removals": list(removals)})
    return removal.run({removal.VARIABLE: told}, root, words), words.read_text()


def whole(folder: str = RUN, run: int = 1) -> dict[str, Any]:
    return {"run": run, "folder": folder}


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_a_run_goes_and_nothing_else(root: Path) -> None:
    before = files(root)
    code, words = remove(root, whole())
    assert code == 0
    assert RemovalSummary.model_validate_json(words) == RemovalSummary(ok=True, removed=1, bytes=300)
    assert before - files(root) == {file for file in before if file.startswith(f"team-a/travel/runs/{RUN}/")}
    assert {path.name for path in (root / "team-a/travel/runs").iterdir()} == {OTHER}


def test_checkpoints_go_alone(root: Path) -> None:
    before = files(root)
    code, _ = remove(root, {**whole(), "checkpointsOnly": True})
    assert code == 0
    assert before - files(root) == {f"team-a/travel/runs/{RUN}/checkpoints/checkpoint-5/weights"}
    assert {path.name for path in (root / "team-a/travel/runs" / RUN).iterdir()} == {"model", "reports"}


def test_to_do_it_again_is_to_find_it_done(root: Path) -> None:
    wanted = (whole(), {**whole(OTHER, 2), "checkpointsOnly": True})
    remove(root, *wanted)
    before = files(root)
    code, words = remove(root, *wanted)
    assert (code, files(root)) == (0, before)
    assert RemovalSummary.model_validate_json(words).removed == 0
    shutil.rmtree(root / "team-a/travel")
    assert remove(root, *wanted)[0] == 0, "the job's folder is gone"


def test_what_was_cut_short_is_completed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the move: nothing reads what was moved aside, and the next attempt removes it."""

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(removal.shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            remove(root, whole())
    runs = root / "team-a/travel/runs"
    assert {path.name for path in runs.iterdir()} == {f".removing-{RUN}", OTHER}
    (runs / f".removing-{RUN}" / "model/adapter.safetensors").unlink()
    code, words = remove(root, whole())
    assert code == 0
    assert RemovalSummary.model_validate_json(words).removed == 1
    assert {path.name for path in runs.iterdir()} == {OTHER}


def test_half_a_former_removal_and_the_folder_again(root: Path) -> None:
    runs = root / "team-a/travel/runs"
    shutil.copytree(runs / RUN, runs / f".removing-{RUN}")
    assert remove(root, whole())[0] == 0
    assert {path.name for path in runs.iterdir()} == {OTHER}


def test_links_inside_are_removed_and_not_followed(root: Path) -> None:
    folder = root / "team-a/travel/runs" / RUN
    (folder / "to-base").symlink_to(root / "team-a/models/base", target_is_directory=True)
    (folder / "to-file").symlink_to(root / "team-a/models/base/weights")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe")
    assert remove(root, whole())[0] == 0
    assert (root / "team-a/models/base/weights").read_text() == "base"
    assert not folder.exists()


@pytest.mark.parametrize("what", ["run", "runs", "job", "checkpoints"])
def test_a_link_in_the_place_of_a_folder_is_refused(root: Path, tmp_path: Path, what: str) -> None:
    prey = tmp_path / "prey"
    (prey / RUN / "checkpoints").mkdir(parents=True)
    (prey / "runs" / RUN).mkdir(parents=True)
    place = {"run": f"runs/{RUN}", "runs": "runs", "job": "", "checkpoints": f"runs/{RUN}/checkpoints"}[what]
    path = root / "team-a/travel" / place
    shutil.rmtree(path)
    path.symlink_to(prey / RUN if what in ("run", "checkpoints") else prey, target_is_directory=True)
    before = files(prey), sorted(prey.rglob("*"))
    code, words = remove(root, {**whole(), "checkpointsOnly": what == "checkpoints"})
    assert code == 10
    assert "folder" in words
    assert (files(prey), sorted(prey.rglob("*"))) == before
    assert path.is_symlink()


def test_one_that_is_refused_does_not_keep_the_rest(root: Path) -> None:
    runs = root / "team-a/travel/runs"
    shutil.rmtree(runs / RUN)
    (runs / RUN).write_text("a file")
    code, words = remove(root, whole(), whole(OTHER, 2))
    assert (code, words) == (10, f"team-a/travel/runs/{RUN}: it is no folder")
    assert {path.name for path in runs.iterdir()} == {RUN}


@pytest.mark.parametrize(
    "folder", ["..", "../../models", "1-0123abcd/../../..", "/etc", "", ".", "models", "1-0123ABCD"]
)
def test_another_folder_is_refused(root: Path, folder: str) -> None:
    before = files(root)
    code, words = remove(root, whole(folder))
    assert (code, files(root)) == (10, before)
    assert words.startswith("FINETUNE_REMOVE: ")


@pytest.mark.parametrize("runs", ["team-a/travel", "team-a/../runs", "/team-a/runs", "team-a/models/base", "runs", ""])
def test_another_place_is_refused(root: Path, runs: str) -> None:
    before = files(root)
    code, words = remove(root, whole(), runs=runs)
    assert (code, files(root)) == (10, before)
    assert words.startswith("FINETUNE_REMOVE: ")


def test_without_an_order_nothing_is_removed(root: Path) -> None:
    before = files(root)
    assert removal.run({}, root, None) == 10
    assert files(root) == before


def test_a_volume_that_refuses_is_another_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(removal.os, "rename", refuses)
    assert remove(root, whole()) == (1, f"team-a/travel/runs/{RUN}: Permission denied")


def test_the_command_of_the_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(removal.VARIABLE, json.dumps({"runs": "team-a/travel/runs", "removals": [whole()]}))
    words = root.parent / "words"
    assert main(["remove", "--artifacts", str(root), "--termination-log", str(words)]) == 0
    assert not (root / "team-a/travel/runs" / RUN).exists()
    assert json.loads(words.read_text())["removed"] == 1
