"""https:// sources against a real TLS server: what is allowed is fetched, everything else is refused by name."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tests.https_site import make_certificate, serving_https

from finetune_api.conditions import FailureReason
from finetune_api.run_config import SourcePolicy
from finetune_trainer.errors import TrainerError, UserInputError
from finetune_trainer.sources.https import fetch_file
from finetune_trainer.sources.location import Https

ROWS = b'{"prompt": "a", "completion": "b"}\n' * 1000
LOCAL = SourcePolicy(https_hosts=["localhost", "*.example.test"], allow_private_addresses=True)


@dataclass
class Site:
    """A web server. `requests` are (path, Authorization) of what was asked."""

    port: int = 0
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def url(self, path: str, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body."""
        redirects = {
            "/moved": "/train.jsonl",
            "/elsewhere": f"https://127.0.0.1:{self.port}/train.jsonl",
            "/plain": f"http://localhost:{self.port}/train.jsonl",
            "/other-port": "https://localhost:1/train.jsonl",
            "/loop": "/loop",
            "/nowhere": "https://localhost:99999/x",
        }
        name = path.partition("?")[0]
        if name in redirects:
            return 302, {"Location": redirects[name]}, b""
        if name == "/cut":
            return 200, {"Content-Length": str(len(ROWS) + 1)}, ROWS
        if name == "/wo-l%C3%A4nge":
            return 200, {"Content-Length": "many"}, ROWS
        if name == "/endless":
            return 200, {}, ROWS
        if name.startswith("/status/"):
            return int(name.rpartition("/")[2]), {}, b""
        body = gzip.compress(ROWS) if name.endswith(".gz") else ROWS
        return 200, {"Content-Length": str(len(body))}, body


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tls")
    monkeypatch.setenv("SSL_CERT_FILE", str(make_certificate(folder)))
    web = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.requests.append((self.path, self.headers.get("Authorization")))
            status, headers, body = web.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with serving_https(Handler, folder) as web.port:
        yield web


def fetch(url: str, tmp_path: Path, policy: SourcePolicy = LOCAL, authorization: str | None = None) -> bytes:
    return fetch_file(Https(url), tmp_path / "data", policy, authorization).read_bytes()


@pytest.mark.parametrize("path", ["/train.jsonl", "/train.jsonl?version=2", "/moved", "/endless", "/wo-länge"])
def test_file_of_an_allowed_host_is_fetched(site: Site, tmp_path: Path, path: str) -> None:
    assert fetch(site.url(path), tmp_path) == ROWS


def test_gzip_stays_as_it_is_for_the_reader(site: Site, tmp_path: Path) -> None:
    assert gzip.decompress(fetch(site.url("/train.jsonl.gz"), tmp_path)) == ROWS


def test_authorization_is_sent_and_never_repeated(site: Site, tmp_path: Path) -> None:
    fetch(site.url("/moved"), tmp_path, authorization="Bearer hidden")
    assert site.requests == [("/moved", "Bearer hidden"), ("/train.jsonl", "Bearer hidden")]
    with pytest.raises(UserInputError) as caught:
        fetch(site.url("/status/403?signature=hidden"), tmp_path, authorization="Bearer hidden")
    assert "hidden" not in caught.value.message + caught.value.advice


@pytest.mark.parametrize(
    ("path", "policy", "message"),
    [
        ("/train.jsonl", SourcePolicy(allow_private_addresses=True), r"not among those .* \(none\)"),
        ("/train.jsonl", SourcePolicy(https_hosts=["*.localhost"], allow_private_addresses=True), "not among those"),
        ("/train.jsonl", SourcePolicy(https_hosts=["localhost"]), "private address"),
        ("/elsewhere", LOCAL, "redirects to another host"),
        ("/plain", LOCAL, "redirects to another host"),
        ("/other-port", LOCAL, "redirects to another host"),
        ("/loop", LOCAL, "more than 5 redirects"),
        ("/nowhere", LOCAL, "no valid address"),
        ("/train.jsonl", LOCAL.model_copy(update={"max_bytes": 1000}), "larger than the 1000 bytes"),
        ("/endless", LOCAL.model_copy(update={"max_bytes": 1000}), "larger than the 1000 bytes"),
        ("/train.jsonl", LOCAL.model_copy(update={"timeout_seconds": -1}), "not complete after"),
        ("/status/404", LOCAL, "HTTP 404"),
        ("/status/401", LOCAL, "HTTP 401"),
    ],
)
def test_everything_else_is_refused(site: Site, tmp_path: Path, path: str, policy: SourcePolicy, message: str) -> None:
    with pytest.raises(UserInputError, match=message) as caught:
        fetch(site.url(path), tmp_path, policy)
    assert caught.value.reason is FailureReason.SOURCE_UNAVAILABLE
    assert caught.value.advice


@pytest.mark.parametrize("path", ["/cut", "/status/503", "/status/429"])
def test_passing_trouble_is_tried_again_later(site: Site, tmp_path: Path, path: str) -> None:
    with pytest.raises(TrainerError) as caught:
        fetch(site.url(path), tmp_path)
    assert (caught.value.exit_code, caught.value.reason) == (1, FailureReason.SOURCE_UNAVAILABLE)


@pytest.mark.parametrize(("code", "later"), [(socket.EAI_AGAIN, True), (socket.EAI_NONAME, False)])
def test_a_name_server_that_does_not_answer_ends_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, later: bool
) -> None:
    def lookup(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(code, "as the resolver says it")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(TrainerError, match="as the resolver says it") as caught:
        fetch("https://data.example.test/x", tmp_path)
    assert (caught.value.exit_code == 1) is later


def test_a_host_that_can_have_no_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="has no address"):
        fetch(f"https://{'a' * 64}.example.test/x", tmp_path)


def test_certificate_must_be_trusted_and_of_the_host(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Callable[..., list[str]]
) -> None:
    names(["127.0.0.1"])
    with pytest.raises(UserInputError, match="certificate is not valid"):
        fetch(site.url("/train.jsonl", "other.example.test"), tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(UserInputError, match="certificate is not valid"):
        fetch(site.url("/train.jsonl"), tmp_path)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let example.test resolve to given addresses, one answer a look-up; returns the names that were looked up."""
    real = socket.getaddrinfo

    def install(*answers: list[str]) -> list[str]:
        asked: list[str] = []

        def lookup(host: str, port: int, *args: Any, **more: Any) -> Any:
            if not str(host).endswith("example.test"):
                return real(host, port, *args, **more)
            asked.append(host)
            addresses = answers[min(len(asked), len(answers)) - 1]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        return asked

    return install


def test_address_is_looked_up_once_and_then_kept(site: Site, tmp_path: Path, names: Callable[..., list[str]]) -> None:
    """A name server that answers differently the second time leads nowhere else."""
    asked = names(["127.0.0.1"], ["192.0.2.1"])
    assert fetch(site.url("/train.jsonl", "data.example.test"), tmp_path) == ROWS
    assert asked == ["data.example.test"]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("::1", "fe80::1%1", "fd00::1", "::ffff:127.0.0.1"),
    ],
)
def test_private_addresses_are_refused_even_beside_public_ones(
    tmp_path: Path, names: Callable[..., list[str]], address: str
) -> None:
    names(["93.184.215.14", address])
    with pytest.raises(UserInputError, match="private address"):
        fetch("https://data.example.test/x", tmp_path, SourcePolicy(https_hosts=["data.example.test"]))


def test_second_address_is_tried_when_the_first_is_dead(
    site: Site, tmp_path: Path, names: Callable[..., list[str]]
) -> None:
    names(["127.0.0.2", "127.0.0.1"])
    assert fetch(site.url("/train.jsonl", "data.example.test"), tmp_path) == ROWS
