"""hf:// sources against a mirror of the hub: a real HTTP server that answers the few requests a download makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hub_mirror import COMMIT, OLD, TOKEN, Mirror, Repository, serving
from tests.tiny_models import make_tiny_chat_model

from finetune_api.conditions import ExitCode, FailureReason
from finetune_api.run_config import SourcePolicy
from finetune_api.spec import BaseModelSpec, DataFile
from finetune_trainer import artifacts
from finetune_trainer.errors import TrainerError, UserInputError
from finetune_trainer.sources.datafile import fetch_data
from finetune_trainer.sources.model import BaseModel, fetch_model

SPEC = BaseModelSpec(source="hf://team/tiny")


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = make_tiny_chat_model(tmp_path_factory.mktemp("hub") / "tiny")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def mirror(model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    rows = b'{"prompt": "a", "completion": "b"}\n'
    hub = Mirror(
        {
            "models/team/tiny": Repository({**model_files, "README.md": b"# x", "train.py": b"1", "old/x.bin": b"1"}),
            "models/team/private": Repository(model_files, closed="RepoNotFound"),
            "models/team/gated": Repository(model_files, closed="GatedRepo"),
            "models/team/pickles": Repository({"config.json": b"{}", "pytorch_model.bin": b"x"}),
            "datasets/team/travel": Repository({"data/train.jsonl": rows}),
        }
    )
    with serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def fetch(tmp_path: Path, spec: BaseModelSpec = SPEC, policy: SourcePolicy | None = None) -> BaseModel:
    return fetch_model(
        spec, models=tmp_path / "models", sources=tmp_path, policy=policy or SourcePolicy(), owner="travel-r1"
    )


def test_newest_commit_is_resolved_and_its_useful_files_are_placed(
    mirror: Mirror, tmp_path: Path, model_files: dict[str, bytes]
) -> None:
    model = fetch(tmp_path)
    assert model.revision == COMMIT
    assert model.path == tmp_path / "models" / f"team--tiny@{COMMIT[:12]}"
    artifacts.verify(model.path)
    assert {path.name for path in model.path.iterdir()} == {*model_files, "manifest.json"}
    assert not any(".py" in path or ".bin" in path or "README" in path for path in mirror.asked)


def test_second_run_downloads_nothing(mirror: Mirror, tmp_path: Path) -> None:
    first = fetch(tmp_path)
    mirror.asked.clear()
    assert fetch(tmp_path) == first
    assert not [path for path in mirror.asked if "/resolve/" in path]


def test_asked_commit_is_taken(mirror: Mirror, tmp_path: Path) -> None:
    assert fetch(tmp_path, BaseModelSpec(source="hf://team/tiny", revision=OLD)).revision == OLD
    assert all(OLD in path for path in mirror.asked)


def test_token_opens_a_private_repository(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch(tmp_path, BaseModelSpec(source="hf://team/private")).revision == COMMIT


@pytest.mark.parametrize(
    ("spec", "reason", "message", "advice"),
    [
        ({"source": "hf://team/nothing"}, FailureReason.MODEL_ACCESS, "was not found", "HF_TOKEN"),
        ({"source": "hf://team/private"}, FailureReason.MODEL_ACCESS, "was not found", "HF_TOKEN"),
        ({"source": "hf://team/gated"}, FailureReason.MODEL_ACCESS, "is gated", "accept its terms"),
        (
            {"source": "hf://team/tiny", "revision": "c" * 40},
            FailureReason.MODEL_ACCESS,
            "no such revision",
            "revision",
        ),
        ({"source": "hf://team/pickles"}, FailureReason.MODEL_INVALID, "pickles", "safetensors"),
    ],
)
def test_what_cannot_be_had_is_explained(
    mirror: Mirror, tmp_path: Path, spec: dict[str, str], reason: FailureReason, message: str, advice: str
) -> None:
    with pytest.raises(UserInputError, match=message) as caught:
        fetch(tmp_path, BaseModelSpec(**spec))  # type: ignore[arg-type]
    assert caught.value.reason is reason
    assert advice in caught.value.advice
    assert list((tmp_path / "models").iterdir()) == []


def test_too_large_files_are_not_downloaded(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="are allowed"):
        fetch(tmp_path, policy=SourcePolicy(max_bytes=1000))
    assert not [path for path in mirror.asked if "/resolve/" in path]


def test_hub_that_is_down_is_tried_again_later(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.down = True
    with pytest.raises(TrainerError, match="does not answer") as caught:
        fetch(tmp_path)
    assert (caught.value.exit_code, caught.value.reason) == (1, FailureReason.SOURCE_UNAVAILABLE)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(TrainerError, match="does not answer") as caught:
        fetch(tmp_path)
    assert caught.value.exit_code not in (ExitCode.DONE, ExitCode.USER_INPUT)


def test_dataset_file_is_downloaded(mirror: Mirror, tmp_path: Path) -> None:
    data = DataFile(source="hf://team/travel/data/train.jsonl")
    path = fetch_data(data, sources=tmp_path, scratch=tmp_path, policy=SourcePolicy())
    assert path.read_bytes() == b'{"prompt": "a", "completion": "b"}\n'


def test_missing_dataset_file_names_those_that_are_there(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"it has: data/train.jsonl") as caught:
        fetch_data(
            DataFile(source="hf://team/travel/trian.jsonl"), sources=tmp_path, scratch=tmp_path, policy=SourcePolicy()
        )
    assert caught.value.reason is FailureReason.SOURCE_UNAVAILABLE
