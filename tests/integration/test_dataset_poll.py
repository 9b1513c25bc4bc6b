"""Looks at data on a volume, in a bucket and at the hub: what is a change, what is none, and what cannot be told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.errors import CommandFailed, Unavailable
from tests.cluster.fixtures import leave_out
from tests.hub_mirror import Mirror, Repository, serving
from tests.polled_sources import ROWS, Poll, poll, sha256
from tests.prepared_runs import Laptop
from tests.servers import S3_KEYS, Server, s3_server
from tests.tiny_models import make_tiny_chat_model

from finetune_api.conditions import ExitCode, FailureReason
from finetune_api.dataset import ConfigMapRef, DataFile
from finetune_api.reports import parse_summary
from finetune_trainer import __main__ as program
from finetune_trainer import polling
from finetune_trainer.context import StageContext
from finetune_trainer.sources import version


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("base") / "tiny").parent


# What Prepare leaves is what a look finds


def test_a_look_after_prepare_finds_what_prepare_has_read(tiny_model: Path, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path, tiny_model)
    context = laptop.context(laptop.put("train.jsonl", ROWS))
    code, summary = laptop.prepare(context)
    assert code == 0
    assert summary.dataset is not None
    looking = Poll(tmp_path, context.config)
    assert looking.found() == summary.dataset.fingerprint
    laptop.put("train.jsonl", ROWS * 2)
    assert looking.found(summary.dataset.fingerprint, summary.dataset.sha256) != summary.dataset.fingerprint


def test_data_that_prepare_refuses_is_known_by_its_fingerprint(tiny_model: Path, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path, tiny_model)
    context = laptop.context(laptop.put("train.jsonl", b'{"messages": 7}\n'))
    code, summary = laptop.prepare(context)
    assert code == ExitCode.USER_INPUT
    assert summary.dataset is not None
    assert Poll(tmp_path, context.config).found() == summary.dataset.fingerprint


# Mounted: claims and ConfigMaps


def mounted(root: Path, *, large: bool = False, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[Poll, Path]:
    if monkeypatch is not None and large:
        monkeypatch.setattr(version, "READ_BYTES", 10)
    path = root / "sources" / "pvc" / "data" / "train.jsonl"
    looking = poll(root, DataFile(source="pvc://data/train.jsonl"))
    path.parent.mkdir(parents=True)
    path.write_bytes(ROWS)
    return looking, path


def test_a_file_that_is_written_again_with_the_same_content_is_no_change(tmp_path: Path) -> None:
    looking, path = mounted(tmp_path)
    first = looking.found()
    path.unlink()
    path.write_bytes(ROWS)
    assert looking.found(first) == first
    path.write_bytes(ROWS[:-9])
    assert looking.found(first) != first


def test_a_large_file_is_known_by_size_and_time_and_compared_when_these_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, path = mounted(tmp_path, large=True, monkeypatch=monkeypatch)
    first = looking.found()
    path.touch()
    assert looking.found() != first
    assert looking.found(first, sha256(ROWS)) == first
    path.write_bytes(ROWS * 2)
    assert looking.found(first, sha256(ROWS)) != first


def test_a_folder_and_a_key_of_a_config_map_are_looked_at_too(tmp_path: Path) -> None:
    laptop = Laptop(tmp_path, tmp_path)
    looking = Poll(tmp_path, laptop.context(laptop.put("train.jsonl", ROWS)).config)
    first = looking.found()
    laptop.put("train.jsonl", ROWS * 2)
    assert looking.found(first) != first
    folder = tmp_path / "sources" / "pvc" / "data" / "set"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(ROWS)
    of_folder = Poll(tmp_path, laptop.context(DataFile(source="pvc://data/set")).config)
    first = of_folder.found()
    (folder / "b.jsonl").write_bytes(ROWS)
    assert of_folder.found(first) != first


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    looking, path = mounted(tmp_path)
    path.unlink()
    failure = looking.look("a", code=ExitCode.USER_INPUT).failure
    assert failure is not None
    assert failure.reason is FailureReason.SOURCE_UNAVAILABLE
    assert "there is no such file" in failure.message
    assert "put it into the claim data" in failure.advice


def test_a_file_that_is_being_written_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking, path = mounted(tmp_path)
    first = looking.found()
    monkeypatch.setattr("time.sleep", lambda _: path.write_bytes(path.read_bytes() + ROWS))
    path.write_bytes(ROWS * 2)
    failure = looking.look(first, code=ExitCode.USER_INPUT).failure
    assert failure is not None
    assert failure.reason is FailureReason.SOURCE_UNSTEADY
    assert failure.message.startswith("spec.dataset.train: two looks")


def test_what_a_former_version_has_read_is_known_by_its_digest_alone(tmp_path: Path) -> None:
    looking, path = mounted(tmp_path)
    same = looking.look(None, sha256(ROWS)).dataset
    path.write_bytes(ROWS * 2)
    other = looking.look(None, sha256(ROWS)).dataset
    assert same is not None
    assert other is not None
    assert (same.sha256, other.sha256) == (None, sha256(ROWS * 2))


def test_a_source_that_was_away_and_is_back_is_a_change(tmp_path: Path) -> None:
    looking, _ = mounted(tmp_path)
    assert looking.found("") == looking.found()


# s3


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("s3")
    try:
        with s3_server(root) as server:
            server.s3().create_bucket(Bucket="team")
            yield server
    except (Unavailable, CommandFailed) as error:
        leave_out(error)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def test_an_object_is_known_by_etag_and_size(bucket: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": bucket.url, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    client, place = bucket.s3(), {"Bucket": "team", "Key": "data/train.jsonl"}
    client.put_object(**place, Body=ROWS)
    looking = poll(tmp_path, DataFile(source="s3://team/data/train.jsonl"))
    first = looking.found()
    client.put_object(**place, Body=ROWS)
    assert looking.found(first) == first, "the same bytes once more"
    client.put_object(**place, Body=ROWS[:-1])
    assert looking.found(first, sha256(ROWS)) != first
    client.delete_object(**place)
    failure = looking.look(first, code=ExitCode.USER_INPUT).failure
    assert failure is not None
    assert "there is no such object" in failure.message
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    failure = looking.look(first, code=ExitCode.USER_INPUT).failure
    assert failure is not None
    assert "access was refused" in failure.message


# hf


def test_a_commit_that_leaves_the_file_alone_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository({"train.jsonl": ROWS, "README.md": b"# x"})
    with serving(Mirror({"datasets/team/travel": repository})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        looking = poll(tmp_path, DataFile(source="hf://team/travel/train.jsonl"))
        first = looking.found()
        repository.files["README.md"] = b"# y"
        repository.commits = ("c" * 40,)
        assert looking.found(first) == first
        assert not [path for path in hub.asked if "/resolve/" in path], "nothing is downloaded"
        repository.files["train.jsonl"] = ROWS * 2
        assert looking.found(first, sha256(ROWS)) != first
        repository.names_blobs = False
        by_commit = looking.found()
        repository.commits = ("d" * 40,)
        assert looking.found(by_commit) != by_commit
        hub.down = True
        failure = looking.look(first, code=1).failure
        assert failure is not None
        assert "does not answer" in failure.message


# Several, and the program itself


def test_any_of_several_files_counts(tmp_path: Path) -> None:
    laptop = Laptop(tmp_path, tmp_path)
    train, held = laptop.put("train.jsonl", ROWS), laptop.put("held.jsonl", ROWS[:200])
    looking = Poll(tmp_path, laptop.context(train, held).config)
    first = looking.found()
    laptop.put("held.jsonl", ROWS[:300])
    assert looking.found(first) != first


def test_the_program_looks_and_leaves_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laptop = Laptop(tmp_path, tmp_path)
    context: StageContext = laptop.context(laptop.put("train.jsonl", ROWS))
    (tmp_path / "run.json").write_text(context.config.model_dump_json(by_alias=True))
    monkeypatch.setenv(polling.VARIABLE, "{}")
    places = ["--config", tmp_path / "run.json", "--sources", tmp_path / "sources"]
    arguments = ["poll", *map(str, places), "--termination-log", str(tmp_path / "log")]
    assert program.main(arguments) == 0
    summary = parse_summary((tmp_path / "log").read_text())
    assert summary is not None
    assert summary.dataset is not None
    assert summary.dataset.fingerprint
    laptop.put("other.jsonl", ROWS)
    reference = ConfigMapRef(name="travel", key="gone.jsonl")
    gone = laptop.context(DataFile(config_map_ref=reference)).config
    (tmp_path / "run.json").write_text(gone.model_dump_json(by_alias=True))
    assert program.main(arguments) == ExitCode.USER_INPUT
    assert "add the key gone.jsonl to the ConfigMap travel" in (tmp_path / "log").read_text()
