"""oci:// exports against a real registry: what lies there, what is not sent twice, and what goes wrong."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.certificate import write_certificate
from tests.cluster.errors import CommandFailed, Unavailable
from tests.cluster.fixtures import leave_out
from tests.servers import PASSWORD, USER, Server, registry

from finetune_api.conditions import FailureReason
from finetune_trainer import artifacts
from finetune_trainer.errors import TrainerError, UserInputError
from finetune_trainer.packaging import registry_client
from finetune_trainer.packaging.registry import Registry

LOGIN = {"username": USER, "password": PASSWORD}
ABOUT = {"finetune-operator.io/run": "1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        with registry(tmp_path_factory.mktemp("registry")) as running:
            yield running
    except (Unavailable, CommandFailed) as error:
        leave_out(error)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_client, "PAUSE", 0.0)


def made(root: Path, **files: bytes) -> Path:
    """A finished folder; `__` in a name stands for a dot."""
    root.mkdir()
    for name, content in (files or {"config__json": b"{}", "model__safetensors": b"weights" * 5000}).items():
        (root / name.replace("__", ".")).write_bytes(content)
    artifacts.finish(root)
    return root


def target(server: Server, tag: str, *, secret: dict[str, str] = LOGIN, replace: bool = False) -> Registry:
    scheme = "oci+http" if server.url.startswith("http://") else "oci"
    return Registry.open(f"{scheme}://{server.host}/team/travel:{tag}", secret, replace=replace)


def get(server: Server, rest: str, **headers: str) -> httpx.Response:
    answer = httpx.get(f"{server.url}/v2/team/travel/{rest}", auth=(USER, PASSWORD), headers=headers)
    answer.raise_for_status()
    return answer


def files_of(server: Server, tag: str, architecture: str) -> dict[str, bytes]:
    """What a node of this architecture would mount, by the image's own documents and digests."""
    index = get(server, f"manifests/{tag}", Accept="application/vnd.oci.image.index.v1+json").json()
    (entry,) = (each for each in index["manifests"] if each["platform"]["architecture"] == architecture)
    manifest = get(server, f"manifests/{entry['digest']}", Accept=entry["mediaType"]).json()
    config = get(server, f"blobs/{manifest['config']['digest']}").json()
    found = {}
    for layer, different in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        blob = get(server, f"blobs/{layer['digest']}").content
        assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == layer["digest"] == different
        assert len(blob) == layer["size"]
        with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
            (member,) = tar.getmembers()
            assert (member.mode, member.uid, member.mtime) == (0o644, 0, 0)
            content = tar.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
    return found


def requests_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is asked of the registry from now on: method and path."""
    seen: list[tuple[str, str]] = []
    original = httpx.Client.request

    def request(self: httpx.Client, method: str, url: Any, **more: Any) -> httpx.Response:
        seen.append((method, httpx.URL(url).path))
        return original(self, method, url, **more)

    monkeypatch.setattr(httpx.Client, "request", request)
    return seen


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_an_export_becomes_an_image_of_its_files(server: Server, tmp_path: Path, architecture: str) -> None:
    folder = made(tmp_path / "whole")
    digest = target(server, f"image-{architecture}").push(folder, ABOUT)
    answer = get(server, f"manifests/image-{architecture}", Accept="application/vnd.oci.image.index.v1+json")
    assert answer.headers["Docker-Content-Digest"] == digest
    assert answer.json()["annotations"] == ABOUT
    found = files_of(server, f"image-{architecture}", architecture)
    assert found == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert target(server, f"image-{architecture}").holds(digest)
    assert not target(server, f"image-{architecture}").holds("sha256:" + "0" * 64)


def test_a_second_push_sends_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "whole", a=b"twice")
    digest = target(server, "twice").push(folder, ABOUT)
    seen = requests_of(monkeypatch)
    assert target(server, "twice").push(folder, ABOUT) == digest
    assert {method for method, _ in seen} == {"GET"}


def test_a_registry_that_keeps_its_blobs_in_a_bucket_is_sent_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked whether it has a blob, it names the place where the blob lies."""
    try:
        with registry(tmp_path / "registry", elsewhere="https://bucket.example.com/") as server:
            target(server, "one").push(made(tmp_path / "one", a=b"shared", b=b"first"), ABOUT)
            seen = requests_of(monkeypatch)
            digest = target(server, "two").push(made(tmp_path / "two", a=b"shared", b=b"second"), ABOUT)
            assert target(server, "two").holds(digest)
    except (Unavailable, CommandFailed) as error:
        leave_out(error)
    uploads = [path for method, path in seen if (method, path.endswith("/uploads/")) == ("POST", True)]
    assert len(uploads) == 2 + 2  # b and manifest.json, and two configurations


def test_the_same_files_are_the_same_image_whenever_they_were_made(server: Server, tmp_path: Path) -> None:
    first, second = made(tmp_path / "one", a=b"same"), made(tmp_path / "two", a=b"same")
    assert target(server, "one").push(first, ABOUT) == target(server, "two").push(second, ABOUT)


def test_a_push_that_was_killed_goes_on_where_it_was(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "whole", a=b"first", b=b"second", c=b"third")
    sent: list[str] = []
    original = registry_client.Client.send_blob

    def dies(self: registry_client.Client, digest: str, size: int, chunks: Any) -> None:
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(digest)
        original(self, digest, size, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(registry_client.Client, "send_blob", dies)
        with pytest.raises(KeyboardInterrupt):
            target(server, "killed").push(folder, ABOUT)
    assert target(server, "killed").client.digest_of("killed") is None  # the tag is written last
    seen = requests_of(monkeypatch)
    digest = target(server, "killed").push(folder, ABOUT)
    uploads = [path for method, path in seen if (method, path.endswith("/uploads/")) == ("POST", True)]
    assert len(uploads) == 2 + 2  # two layers (with manifest.json there are four) and two configurations
    assert target(server, "killed").holds(digest)


def test_a_tag_that_is_another_image_is_left_alone(server: Server, tmp_path: Path) -> None:
    digest = target(server, "latest").push(made(tmp_path / "old", a=b"old"), ABOUT)
    new = made(tmp_path / "new", a=b"new")
    with pytest.raises(UserInputError, match="is another image already") as caught:
        target(server, "latest").push(new, ABOUT)
    assert caught.value.reason is FailureReason.DESTINATION_REFUSED
    assert "conflictPolicy" in caught.value.advice
    assert target(server, "latest").holds(digest)
    moved = target(server, "latest", replace=True).push(new, ABOUT)
    assert moved != digest
    assert target(server, "latest").holds(moved)


@pytest.mark.parametrize("secret", [{}, {"username": USER, "password": "wrong-password"}], ids=["none", "wrong"])
def test_wrong_credentials_are_refused_and_never_told(server: Server, tmp_path: Path, secret: dict[str, str]) -> None:
    with pytest.raises(UserInputError, match="refuses to take it") as caught:
        target(server, "denied", secret=secret).push(made(tmp_path / "whole"), ABOUT)
    assert caught.value.reason is FailureReason.DESTINATION_REFUSED
    assert "secretRef" in caught.value.advice
    assert "wrong-password" not in f"{caught.value.message}{caught.value.advice}"


def docker_config(host: str, **entry: str) -> dict[str, str]:
    return {".dockerconfigjson": json.dumps({"auths": {host: entry}})}


def test_the_secret_of_docker_is_understood(server: Server, tmp_path: Path) -> None:
    import base64

    folder = made(tmp_path / "whole", a=b"docker")
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    for number, secret in enumerate(
        (
            docker_config(server.host, auth=auth),
            docker_config(f"https://{server.host}/v1/", username=USER, password=PASSWORD),
        )
    ):
        assert target(server, f"docker-{number}", secret=secret).push(folder, ABOUT)


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"HOST": {}}}', '{"auths": {"HOST": {"auth": "?"}}}'])
def test_a_secret_that_cannot_be_read_is_named(server: Server, text: str) -> None:
    with pytest.raises(UserInputError, match="cannot be read") as caught:
        target(server, "secret", secret={".dockerconfigjson": text.replace("HOST", server.host)})
    assert caught.value.reason is FailureReason.DESTINATION_REFUSED


def test_a_registry_that_goes_away_in_the_middle_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "whole", a=b"first", b=b"second")
    try:
        with registry(tmp_path / "registry") as first:
            port, original = int(first.host.rpartition(":")[2]), registry_client.Client.send_blob

            def falls(self: registry_client.Client, digest: str, size: int, chunks: Any) -> None:
                original(self, digest, size, chunks)
                first.component.end()

            with monkeypatch.context() as patch:
                patch.setattr(registry_client.Client, "send_blob", falls)
                with pytest.raises(TrainerError) as caught:
                    target(first, "away").push(folder, ABOUT)
        assert (caught.value.exit_code, caught.value.reason) == (1, FailureReason.DESTINATION_UNAVAILABLE)
        assert first.host in caught.value.message
        with registry(tmp_path / "registry", port=port) as again:
            digest = target(again, "away").push(folder, ABOUT)
            assert files_of(again, "away", "amd64")["b"] == b"second"
            assert target(again, "away").holds(digest)
    except (Unavailable, CommandFailed) as error:
        leave_out(error)


def test_a_private_authority_has_to_be_named(tmp_path: Path) -> None:
    write_certificate(tmp_path)
    authority = (tmp_path / "tls.crt").read_text()
    try:
        with registry(tmp_path / "registry", (tmp_path / "tls.crt", tmp_path / "tls.key")) as server:
            folder = made(tmp_path / "whole")
            with pytest.raises(UserInputError, match="certificate is not trusted") as caught:
                target(server, "tls").push(folder, ABOUT)
            assert "ca.crt" in caught.value.advice
            assert target(server, "tls", secret={**LOGIN, "ca.crt": authority}).push(folder, ABOUT)
    except (Unavailable, CommandFailed) as error:
        leave_out(error)
    with pytest.raises(UserInputError, match="no certificate in PEM form"):
        Registry.open("oci://127.0.0.1:1/team/travel:x", {"ca.crt": "nonsense"}, replace=False)


def test_a_token_is_fetched_where_the_registry_asks_for_one(tmp_path: Path) -> None:
    """As the large public registries do: the login goes to the token server only, the token to the registry."""
    asked: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.host, request.headers.get("Authorization", "")))
        if request.url.host == "auth.example.com":
            assert request.url.params["scope"] == "repository:team/travel:pull,push"
            return httpx.Response(200, json={"token": "given"})
        if request.headers.get("Authorization") != "Bearer given":
            challenge = 'Bearer realm="https://auth.example.com/token",service="registry.example.com"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        return httpx.Response(404)

    client = registry_client.Client.open("oci://registry.example.com/team/travel:x", LOGIN)
    client.http = httpx.Client(transport=httpx.MockTransport(answer))
    assert client.digest_of("x") is None
    basic = registry_client._basic((USER, PASSWORD))
    assert asked == [
        ("registry.example.com", ""),
        ("auth.example.com", basic),
        ("registry.example.com", "Bearer given"),
    ]
