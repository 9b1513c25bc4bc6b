"""s3:// exports against a real S3 server: what lies there, what is not sent twice, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.errors import CommandFailed, Unavailable
from tests.cluster.fixtures import leave_out
from tests.cluster.processes import free_ports
from tests.servers import S3_KEYS, Server, s3_server

from finetune_api.conditions import FailureReason
from finetune_trainer import artifacts
from finetune_trainer.errors import TrainerError, UserInputError
from finetune_trainer.packaging import bucket
from finetune_trainer.packaging.bucket import Bucket

BUCKET = "exports"
LEAST_PART = 5 * 2**20  # of S3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        with s3_server(tmp_path_factory.mktemp("s3")) as running:
            running.s3().create_bucket(Bucket=BUCKET)
            yield running
    except (Unavailable, CommandFailed) as error:
        leave_out(error)


def made(root: Path, **files: bytes) -> tuple[Path, str]:
    """A finished folder and its digest."""
    root.mkdir()
    for name, content in (files or {"a": b"first", "b": b"second"}).items():
        (root / name).write_bytes(content)
    return root, artifacts.finish(root)


def target(server: Server, folder: str, *, replace: bool = False, name: str = BUCKET, **secret: str) -> Bucket:
    keys = {**S3_KEYS, "AWS_ENDPOINT_URL": server.url, **secret}
    return Bucket.open(f"s3://{name}/models/{folder}", keys, replace=replace)


def objects(server: Server, folder: str) -> dict[str, bytes]:
    client, prefix = server.s3(), f"models/{folder}/"
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {
        each["Key"].removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()
        for each in found
    }


def test_an_export_becomes_objects_with_the_manifest_last(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, digest = made(tmp_path / "whole")
    to = target(server, "whole")
    assert not to.holds(digest)
    sent: list[str] = []
    to.client.meta.events.register(
        "before-send.s3", lambda request, **_: sent.append(f"{request.method} {request.url}")
    )
    assert to.push(folder, {}) == digest
    assert [line for line in sent if line.startswith("PUT")][-1].endswith("/models/whole/manifest.json")
    assert objects(server, "whole") == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert to.holds(digest)


def test_a_second_push_sends_nothing(server: Server, tmp_path: Path) -> None:
    folder, digest = made(tmp_path / "whole")
    target(server, "twice").push(folder, {})
    to = target(server, "twice")
    methods: set[str] = set()
    to.client.meta.events.register("before-send.s3", lambda request, **_: methods.add(request.method))
    assert to.push(folder, {}) == digest
    assert methods == {"GET"}


def test_a_large_file_goes_in_parts(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "PART", LEAST_PART)
    content = bytes(range(256)) * (44 * 2**10)  # 11 MiB
    folder, digest = made(tmp_path / "whole", weights=content)
    to = target(server, "large")
    parts: list[str] = []
    to.client.meta.events.register("before-send.s3.UploadPart", lambda request, **_: parts.append(request.url))
    assert to.push(folder, {}) == digest
    assert len(parts) == 3
    assert objects(server, "large")["weights"] == content


def test_a_push_that_was_killed_goes_on_where_it_was(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, digest = made(tmp_path / "whole")
    client = server.s3()
    client.create_multipart_upload(Bucket=BUCKET, Key="models/killed/b")  # its parts are invisible and cost money
    original = Bucket._send

    def dies(self: Bucket, path: Path, name: str, entry: Any) -> None:
        if name == "b":
            raise KeyboardInterrupt
        original(self, path, name, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "_send", dies)
        with pytest.raises(KeyboardInterrupt):
            target(server, "killed").push(folder, {})
    assert not target(server, "killed").holds(digest)
    sent: list[str] = []
    monkeypatch.setattr(Bucket, "_send", lambda self, *more: (sent.append(more[1]), original(self, *more)))
    target(server, "killed").push(folder, {})
    assert sent == ["b"]
    assert target(server, "killed").holds(digest)
    assert not client.list_multipart_uploads(Bucket=BUCKET, Prefix="models/killed/").get("Uploads")


def test_half_a_file_of_the_right_size_is_sent_again(server: Server, tmp_path: Path) -> None:
    folder, _ = made(tmp_path / "whole")
    server.s3().put_object(Bucket=BUCKET, Key="models/half/a", Body=b"FIRST")
    target(server, "half").push(folder, {})
    assert objects(server, "half")["a"] == b"first"


@pytest.mark.parametrize("foreign", [{"manifest.json": b'{"files": {}}'}, {"notes.txt": b"mine"}])
def test_a_folder_that_holds_something_else_is_left_alone(
    server: Server, tmp_path: Path, foreign: dict[str, bytes]
) -> None:
    folder, digest = made(tmp_path / "whole")
    name = f"taken-{len(next(iter(foreign)))}"
    for key, content in foreign.items():
        server.s3().put_object(Bucket=BUCKET, Key=f"models/{name}/{key}", Body=content)
    with pytest.raises(UserInputError, match="already") as caught:
        target(server, name).push(folder, {})
    assert caught.value.reason is FailureReason.DESTINATION_REFUSED
    assert "conflictPolicy" in caught.value.advice
    assert objects(server, name) == foreign
    assert target(server, name, replace=True).push(folder, {}) == digest
    assert objects(server, name).keys() == {"a", "b", "manifest.json"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "nobody"}, "there is no such bucket"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "access was refused"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "No user exists"),
        ({"AWS_ENDPOINT_URL": "no url"}, "Invalid endpoint"),
    ],
    ids=["no bucket", "wrong secret", "unknown key", "no url"],
)
def test_what_is_refused_is_named_and_no_secret_is_told(
    server: Server, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    folder, _ = made(tmp_path / "whole")
    with pytest.raises(UserInputError, match=message) as caught:
        target(server, "refused", **changed).push(folder, {})
    assert caught.value.reason is FailureReason.DESTINATION_REFUSED
    assert caught.value.advice
    assert "wrong-secret" not in f"{caught.value.message}{caught.value.advice}"


def test_a_server_that_is_away_is_tried_again(server: Server, tmp_path: Path) -> None:
    folder, _ = made(tmp_path / "whole")
    away = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(TrainerError) as caught:
        target(server, "away", AWS_ENDPOINT_URL=away).push(folder, {})
    assert (caught.value.exit_code, caught.value.reason) == (1, FailureReason.DESTINATION_UNAVAILABLE)
