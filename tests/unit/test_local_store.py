"""Objects in files: identity, generations, locks, claims."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.simulator import make_job

from finetune_operator.local.errors import BadInput, Busy
from finetune_operator.local.store import Store


def test_applying_twice_changes_nothing(tmp_path: Path) -> None:
    store, job = Store(tmp_path), make_job()
    first = store.submit(job)
    assert first.metadata.uid
    assert store.submit(job) == first


def test_a_changed_spec_raises_the_generation_and_keeps_identity_and_status(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.submit(make_job())
    store.save(first.model_copy(update={"status": first.status.model_copy(update={"percent": "7%"})}))
    second = store.submit(make_job(method={"type": "Full"}))
    assert second.metadata.generation == first.metadata.generation + 1
    assert second.metadata.uid == first.metadata.uid
    assert second.status.percent == "7%"


def test_two_commands_cannot_work_on_one_job(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock("team-a", "travel"):
        assert store.is_driven("team-a", "travel")
        with pytest.raises(Busy, match="is at work on team-a/travel"), store.lock("team-a", "travel"):
            pass
        with store.lock("team-a", "other"):
            pass
    assert not store.is_driven("team-a", "travel")


def test_a_claim_follows_its_newest_folder_but_never_replaces_a_real_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        store.link_claim("data", tmp_path / name)
    assert (store.claims / "data").resolve() == tmp_path / "b"
    (store.claims / "own").mkdir()
    with pytest.raises(BadInput, match="is a folder already"):
        store.link_claim("own", tmp_path / "a")


def test_a_broken_object_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.submit(make_job())
    store.object_path("team-a", "travel").write_text("{")
    with pytest.raises(BadInput, match=r"travel\.json cannot be read"):
        store.load("team-a", "travel")


def test_the_longest_name_that_kubernetes_takes_fits_into_a_file_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    longest = make_job("a" * 253)
    with store.lock("team-a", longest.metadata.name):
        store.submit(longest)
        store.submit(make_job("a" * 252))
    assert store.load("team-a", "a" * 253) is not None
    assert [len(job.metadata.name) for job in store.jobs("team-a")].count(253) == 1
    assert len(store.jobs()) == 2
