"""Only a folder with a manifest that matches its content is trusted."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_trainer import artifacts
from finetune_trainer.errors import ArtifactInvalidError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "inner").mkdir(parents=True)
    (made / "weights.safetensors").write_bytes(b"w" * 1000)
    (made / "inner" / "config.json").write_text("{}")
    return made


def test_finished_folder_verifies_to_the_same_digest(folder: Path) -> None:
    assert not artifacts.is_complete(folder)
    digest = artifacts.finish(folder)
    assert artifacts.is_complete(folder)
    assert artifacts.verify(folder) == artifacts.verify(folder, sizes_only=True) == digest
    assert artifacts.finish(folder) == digest
    assert json.loads((folder / "manifest.json").read_text())["files"].keys() == {
        "weights.safetensors",
        "inner/config.json",
    }


def test_a_card_may_be_added_and_written_anew_and_even_its_writer_may_be_killed(folder: Path) -> None:
    digest = artifacts.finish(folder)
    for text in ("# measured", "# measured again"):
        artifacts.write_json(folder / artifacts.CARD, text)
        assert artifacts.verify(folder) == digest
    (folder / f".{artifacts.CARD}.0a1b2c3d.tmp").write_text("# half")
    assert artifacts.verify(folder) == digest


def test_a_card_that_came_with_a_model_is_vouched_for(folder: Path) -> None:
    (folder / artifacts.CARD).write_text("# by its maker")
    artifacts.finish(folder)
    (folder / artifacts.CARD).write_text("# by another")
    with pytest.raises(ArtifactInvalidError, match="was changed"):
        artifacts.verify(folder)


def flip(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"w" * 999 + b"x")


def cut(folder: Path) -> None:
    os.truncate(folder / "weights.safetensors", 10)


def remove(folder: Path) -> None:
    (folder / "inner" / "config.json").unlink()


def add(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"pickle")


def link(folder: Path) -> None:
    (folder / "weights.safetensors").rename(folder.parent / "elsewhere")
    (folder / "weights.safetensors").symlink_to(folder.parent / "elsewhere")


def forget(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def scribble(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {"weights.safetensors": {}}}')


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip, "weights.safetensors was changed"),
        (cut, "weights.safetensors was changed"),
        (remove, "config.json is missing"),
        (add, "optimizer.pt is not in"),
        (link, "weights.safetensors was changed"),
        (forget, "never finished"),
        (scribble, "is not a manifest"),
    ],
)
def test_every_damage_is_found_and_named(folder: Path, damage: Callable[[Path], None], named: str) -> None:
    artifacts.finish(folder)
    damage(folder)
    with pytest.raises(ArtifactInvalidError, match=named) as caught:
        artifacts.verify(folder)
    assert caught.value.advice


def test_leftovers_of_file_systems_and_writers_do_not_count(folder: Path) -> None:
    digest = artifacts.finish(folder)
    (folder / ".nfs0000a").touch()
    (folder / ".manifest.json.0badcafe.tmp").touch()
    assert artifacts.verify(folder) == digest


def test_folder_with_a_link_or_without_a_file_cannot_be_finished(folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactInvalidError, match="not a plain file"):
        artifacts.finish(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactInvalidError, match="is empty"):
        artifacts.finish(tmp_path / "empty")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "train.json"
    artifacts.write_json(path, "old")
    with pytest.raises(UnicodeEncodeError):
        artifacts.write_json(path, "\ud800")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_reader_beside_writers_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    texts = [json.dumps([letter * 50_000]) for letter in "ab"]
    artifacts.write_json(path, texts[0])
    writers = [threading.Thread(target=lambda t=t: [artifacts.write_json(path, t) for _ in range(20)]) for t in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
