"""Sources are parsed strictly; mounted ones cannot be left; only models that can be tuned are taken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny_models import make_tiny_chat_model

from finetune_api.conditions import FailureReason
from finetune_api.run_config import SourcePolicy
from finetune_api.spec import BaseModelSpec, ConfigMapRef
from finetune_trainer import artifacts
from finetune_trainer.errors import UserInputError
from finetune_trainer.sources import model as model_source
from finetune_trainer.sources import mounted
from finetune_trainer.sources.location import S3, Https, Hub, Location, Pvc, parse_source, slug
from finetune_trainer.sources.model import BaseModel, fetch_model
from finetune_trainer.sources.model_files import wanted_files


@pytest.mark.parametrize(
    ("source", "location", "name"),
    [
        ("hf://Qwen/Qwen3-0.6B", Hub("Qwen/Qwen3-0.6B"), "Qwen--Qwen3-0.6B"),
        ("hf://team/data/a/train.jsonl", Hub("team/data", "a/train.jsonl"), "team--data"),
        ("pvc://models/tiny/", Pvc("models", "tiny"), "models--tiny"),
        ("s3://bucket/some/key", S3("bucket", "some/key"), "bucket--some--key"),
        ("https://host:8443/a?b=c", Https("https://host:8443/a?b=c"), "host--8443--a--b--c"),
    ],
)
def test_sources_are_parsed(source: str, location: Location, name: str) -> None:
    assert parse_source(source) == location
    assert slug(location) == name


@pytest.mark.parametrize(
    "source",
    [
        "pvc://claim/../other/x",
        "pvc://claim",
        "pvc:///x",
        "s3://bucket",
        "s3://bucket/a/../../b",
        "hf://only",
        "https://",
        "https://host:99999/x",
        "https://[::1/x",
        "file:///etc/passwd",
        "/etc/passwd",
        "pvc://claim/a\\..\\b",
        "",
    ],
)
def test_bad_sources_are_refused(source: str) -> None:
    with pytest.raises(UserInputError) as caught:
        parse_source(source)
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert caught.value.advice


def test_password_in_a_url_is_refused_without_repeating_it() -> None:
    with pytest.raises(UserInputError) as caught:
        parse_source("https://me:hunter2@host/x")
    assert "hunter2" not in caught.value.message + caught.value.advice


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    root = tmp_path / "sources" / "pvc" / "data"
    root.mkdir(parents=True)
    (root / "train.jsonl").write_text("{}")
    (tmp_path / "outside.jsonl").write_text("{}")
    return root


def test_file_of_a_claim_is_found_also_by_an_inner_link(claim: Path, tmp_path: Path) -> None:
    (claim / "newest.jsonl").symlink_to("train.jsonl")
    for name in ("train.jsonl", "newest.jsonl"):
        assert mounted.claim_path(tmp_path / "sources", Pvc("data", name)) == claim / "train.jsonl"


def test_keys_of_a_config_map_are_found_as_the_kubelet_mounts_them(tmp_path: Path) -> None:
    root = tmp_path / "configmap" / "travel"
    (root / "..2026").mkdir(parents=True)
    (root / "..2026" / "train.jsonl").write_text("{}")
    (root / "..data").symlink_to("..2026")
    (root / "train.jsonl").symlink_to("..data/train.jsonl")
    found = mounted.config_map_path(tmp_path, ConfigMapRef(name="travel", key="train.jsonl"))
    assert found.read_text() == "{}"


@pytest.mark.parametrize(
    ("claim_name", "path", "text"),
    [
        ("data", "../../../outside.jsonl", "leads out"),
        ("data", "link.jsonl", "leads out"),
        ("data", "folder/outside.jsonl", "leads out"),
        ("data", "trian.jsonl", "beside it: folder, link.jsonl, train.jsonl"),
        ("other", "train.jsonl", "not mounted"),
    ],
)
def test_claims_cannot_be_left(claim: Path, tmp_path: Path, claim_name: str, path: str, text: str) -> None:
    (claim / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    (claim / "folder").symlink_to(tmp_path)
    with pytest.raises(UserInputError, match=text) as caught:
        mounted.claim_path(tmp_path / "sources", Pvc(claim_name, path))
    assert caught.value.reason is FailureReason.SOURCE_UNAVAILABLE


def test_only_safetensors_and_plain_files_are_wanted() -> None:
    names = ["README.md", "model.safetensors", "pytorch_model.bin", "config.json", "modeling_x.py", "tokenizer.json"]
    assert wanted_files([*names, "consolidated.safetensors", "training_args.bin"], "x") == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["config.json", "pytorch_model.bin"], "pickles"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["README.md"], "no safetensors"),
    ],
)
def test_other_formats_are_refused(names: list[str], text: str) -> None:
    with pytest.raises(UserInputError, match=text) as caught:
        wanted_files(names, "hf://a/b")
    assert caught.value.reason is FailureReason.MODEL_INVALID


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    make_tiny_chat_model(tmp_path / "sources" / "pvc" / "models" / "tiny")
    return tmp_path / "sources"


def fetch(sources: Path, owner: str = "travel-r1") -> BaseModel:
    spec = BaseModelSpec(source="pvc://models/tiny")
    return fetch_model(spec, models=sources.parent / "artifacts", sources=sources, policy=SourcePolicy(), owner=owner)


def test_model_is_placed_once_under_its_digest(sources: Path) -> None:
    first, second = fetch(sources), fetch(sources, "other-r7")
    assert first == second
    assert first.path.name == f"models--tiny@{first.revision[:12]}"
    assert artifacts.verify(first.path) == first.revision
    assert [entry.name for entry in first.path.parent.iterdir()] == [first.path.name]
    weights = first.path / "model.safetensors"
    assert weights.stat().st_ino != (sources / "pvc/models/tiny/model.safetensors").stat().st_ino


def test_changed_model_has_another_folder(sources: Path) -> None:
    first = fetch(sources)
    make_tiny_chat_model(sources / "pvc" / "models" / "tiny", seed=5)
    assert fetch(sources).path != first.path
    assert artifacts.verify(first.path)


def test_leftovers_of_the_same_run_go_and_of_others_stay(sources: Path) -> None:
    models = sources.parent / "artifacts"
    mine, other = models / ".travel-r1.0badcafe.part", models / ".travel-r1.x-r2.0badcafe.part"
    for folder in (mine, other):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    fetch(sources)
    assert not mine.exists()
    assert other.exists()


def test_damaged_model_is_replaced(sources: Path) -> None:
    target = fetch(sources).path
    os.truncate(target / "model.safetensors", 100)
    assert artifacts.verify(fetch(sources).path)


def test_interrupted_copy_leaves_nothing_that_is_trusted(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_folder: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(model_source.artifacts, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(sources)
    models = sources.parent / "artifacts"
    assert list(models.iterdir()) == []
    assert artifacts.verify(fetch(sources).path)


def test_second_of_two_racing_jobs_takes_the_firsts_model(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other job finishes just before ours gives its folder its name."""
    finish = artifacts.finish
    racing = []

    def finish_late(folder: Path) -> str:
        digest = finish(folder)
        if not racing:
            racing.append(True)
            racing.append(fetch(sources, "other-r1"))
        return digest

    monkeypatch.setattr(model_source.artifacts, "finish", finish_late)
    ours = fetch(sources)
    assert racing[1] == ours
    assert artifacts.verify(ours.path)
    assert [entry.name for entry in ours.path.parent.iterdir()] == [ours.path.name]


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_config(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return change


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 2000)


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": ')


def index_of_nothing(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def escaping(folder: Path) -> None:
    outside = folder.parents[3] / "secret.json"
    (folder / "tokenizer.json").rename(outside)
    (folder / "tokenizer.json").symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (without("config.json"), "no config.json"),
        (without("tokenizer.json"), "no tokenizer"),
        (without("model.safetensors"), "no safetensors"),
        (with_config(model_type=None, quantization_config={"bits": 4}), "quantised"),
        (truncated, "model.safetensors is damaged"),
        (missing_shard, "model-00001-of-00002.safetensors is missing"),
        (broken_index, "model.safetensors.index.json is damaged"),
        (index_of_nothing, "model.safetensors.index.json is damaged"),
        (escaping, "leads out"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (
            lambda folder: (folder / "generation_config.json").write_text("{"),
            "generation_config.json is not valid JSON",
        ),
        (
            lambda folder: (folder / "generation_config.json").write_text("[]"),
            "generation_config.json is not an object",
        ),
    ],
)
def test_folder_that_is_no_tunable_model_is_refused(sources: Path, damage: Callable[[Path], None], text: str) -> None:
    damage(sources / "pvc" / "models" / "tiny")
    with pytest.raises(UserInputError, match=text) as caught:
        fetch(sources)
    assert caught.value.reason is FailureReason.MODEL_INVALID
    assert caught.value.advice
