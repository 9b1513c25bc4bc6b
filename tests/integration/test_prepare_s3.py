"""s3:// sources against a real S3 server."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from tests.cluster import binaries
from tests.cluster.errors import CommandFailed, Unavailable
from tests.cluster.fixtures import leave_out
from tests.cluster.processes import free_ports, start, wait_until
from tests.tiny_models import make_tiny_chat_model

from finetune_api.conditions import FailureReason
from finetune_api.run_config import SourcePolicy
from finetune_api.spec import BaseModelSpec, DataFile
from finetune_trainer import artifacts
from finetune_trainer.errors import TrainerError, UserInputError
from finetune_trainer.sources.datafile import fetch_data
from finetune_trainer.sources.model import BaseModel, fetch_model

ROWS = b'{"prompt": "a", "completion": "b"}\n'
KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an S3 server with the bucket `team`: data/train.jsonl, and a model below models/tiny/."""
    try:
        program = binaries.versitygw()
    except (Unavailable, CommandFailed) as error:
        leave_out(error)
    root = tmp_path_factory.mktemp("s3")
    (root / "data").mkdir()
    port = free_ports(1)[0]
    keys = ("--access", KEYS["AWS_ACCESS_KEY_ID"], "--secret", KEYS["AWS_SECRET_ACCESS_KEY"])
    component = start(
        "versitygw", [program, "--port", f"127.0.0.1:{port}", *keys, "posix", "--nometa", root / "data"], root / "logs"
    )
    url = f"http://127.0.0.1:{port}"
    client = boto3.session.Session(
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    ).client("s3", endpoint_url=url)
    try:
        wait_until(lambda: free_to_connect(port), 30, "the S3 server", component.tail)
        client.create_bucket(Bucket="team")
        client.put_object(Bucket="team", Key="data/train.jsonl", Body=ROWS)
        folder = make_tiny_chat_model(root / "tiny")
        for path in folder.iterdir():
            client.put_object(Bucket="team", Key=f"models/tiny/{path.name}", Body=path.read_bytes())
        client.put_object(Bucket="team", Key="models/tiny/old/pytorch_model.bin", Body=b"pickle")
        yield url
    finally:
        component.end()
        shutil.rmtree(root, ignore_errors=True)


def free_to_connect(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


@pytest.fixture(autouse=True)
def environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Secret of secretRef puts into the prepare pod."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)


def data(tmp_path: Path, key: str = "data/train.jsonl", bucket: str = "team", max_bytes: int = 2**20) -> Path:
    return fetch_data(
        DataFile(source=f"s3://{bucket}/{key}"),
        sources=tmp_path,
        scratch=tmp_path,
        policy=SourcePolicy(max_bytes=max_bytes),
    )


def model(tmp_path: Path, prefix: str = "models/tiny") -> BaseModel:
    return fetch_model(
        BaseModelSpec(source=f"s3://team/{prefix}"),
        models=tmp_path / "models",
        sources=tmp_path,
        policy=SourcePolicy(),
        owner="travel-r1",
    )


def test_object_is_downloaded(tmp_path: Path) -> None:
    assert data(tmp_path).read_bytes() == ROWS


def test_model_is_placed_under_its_digest(tmp_path: Path) -> None:
    found = model(tmp_path)
    assert found.path.name == f"team--models--tiny@{found.revision[:12]}"
    assert artifacts.verify(found.path) == found.revision
    assert not list(found.path.rglob("*.bin"))


@pytest.mark.parametrize(
    ("key", "bucket", "message"),
    [("data/trian.jsonl", "team", "there is no such"), ("data/train.jsonl", "nobody", "there is no such")],
)
def test_missing_object_is_named(tmp_path: Path, key: str, bucket: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message) as caught:
        data(tmp_path, key, bucket)
    assert caught.value.reason is FailureReason.SOURCE_UNAVAILABLE
    assert f"s3://{bucket}/{key}" in caught.value.message


def test_large_object_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="are allowed"):
        data(tmp_path, max_bytes=3)
    assert list(tmp_path.iterdir()) == []


def test_empty_prefix_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no objects") as caught:
        model(tmp_path, "models/nothing")
    assert caught.value.reason is FailureReason.MODEL_ACCESS


def test_wrong_keys_are_explained_without_naming_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(UserInputError, match="access was refused") as caught:
        data(tmp_path)
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.advice
    assert "another-secret" not in caught.value.message


def test_missing_keys_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UserInputError, match="no S3 credentials"):
        data(tmp_path)


def test_server_that_is_down_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(TrainerError) as caught:
        data(tmp_path)
    assert (caught.value.exit_code, caught.value.reason) == (1, FailureReason.SOURCE_UNAVAILABLE)
