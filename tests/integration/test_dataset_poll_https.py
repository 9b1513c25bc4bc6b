"""Looks at data at a web server: what its headers tell, and what only the content does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tests.https_site import make_certificate, serving_https
from tests.polled_sources import LOCAL, ROWS, Poll, poll, sha256

from finetune_api.conditions import ExitCode, FailureReason
from finetune_api.dataset import DataFile
from finetune_trainer import polling
from finetune_trainer.sources import https


@dataclass
class Site:
    """One file of a web server, with the headers that it is given; `{n}` in them is another number each time."""

    body: bytes = ROWS
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    sent: int = 0
    asked: int = 0
    port: int = 0


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "tls"
    folder.mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(make_certificate(folder)))
    web = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked += 1
            self.send_response(web.status)
            headers = {"Content-Length": str(len(web.body)), **web.headers}
            for name, value in headers.items():
                if value:
                    self.send_header(name, value.replace("{n}", str(web.asked)))
            self.end_headers()
            for start in range(0, len(web.body), 65536):
                self.wfile.write(web.body[start : start + 65536])
                web.sent += 65536

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with serving_https(Handler, folder) as web.port:
        yield web


def web_poll(tmp_path: Path, site: Site, **policy: Any) -> Poll:
    source = f"https://localhost:{site.port}/train.jsonl?signature=hidden"
    return poll(tmp_path, DataFile(source=source), LOCAL.model_copy(update=policy))


def test_an_etag_tells_and_the_file_is_not_fetched(site: Site, tmp_path: Path) -> None:
    site.body = b"x" * (32 * 2**20)
    site.headers = {"ETag": '"v1"'}
    looking = web_poll(tmp_path, site)
    first = looking.found()
    site.headers |= {"Last-Modified": "Sat, 28 Nov 2026 09:00:00 GMT"}
    assert looking.found(first) == first
    assert site.sent < 16 * 2**20, "what the network had taken before we hung up"
    site.headers["ETag"] = '"v2"'
    assert looking.found(first) != first


def test_without_an_etag_time_and_length_tell(site: Site, tmp_path: Path) -> None:
    site.headers = {"Last-Modified": "Sat, 28 Nov 2026 09:00:00 GMT"}
    looking = web_poll(tmp_path, site)
    first = looking.found()
    assert looking.found(first) == first
    site.body += b"\n"
    longer = looking.found(first)
    site.headers = {"Last-Modified": "Sat, 28 Nov 2026 09:00:01 GMT"}
    assert len({first, longer, looking.found(longer)}) == 3


def test_a_server_that_says_nothing_is_known_by_the_content(site: Site, tmp_path: Path) -> None:
    looking = web_poll(tmp_path, site)
    first = looking.found()
    assert looking.found(first) == first
    site.body = ROWS[:-1]
    assert looking.found(first) != first


@pytest.mark.parametrize("headers", [{}, {"Content-Length": ""}])
def test_a_large_file_of_such_a_server_cannot_be_looked_at(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(https, "COMPARED_BYTES", 100)
    site.headers = headers
    failure = web_poll(tmp_path, site).look(code=ExitCode.USER_INPUT).failure
    assert failure is not None
    assert failure.reason is FailureReason.SOURCE_UNSTEADY
    assert "neither ETag nor Last-Modified" in failure.message
    assert "triggers.schedule" in failure.advice


def test_another_etag_at_each_request_for_the_same_data_starts_nothing(site: Site, tmp_path: Path) -> None:
    site.headers = {"ETag": '"{n}"'}
    looking = web_poll(tmp_path, site)
    first = looking.found()
    for _ in range(3):
        assert looking.found(first, sha256(ROWS)) == first
    site.body = ROWS * 2
    assert looking.found(first, sha256(ROWS)) != first, "other data is a change, whatever the server calls it"


def test_another_etag_at_each_request_for_data_that_is_too_large_is_said(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "FETCHED_BYTES", 100)
    site.headers = {"ETag": '"{n}"'}
    looking = web_poll(tmp_path, site)
    failure = looking.look(looking.found(), sha256(ROWS), code=ExitCode.USER_INPUT).failure
    assert failure is not None
    assert failure.reason is FailureReason.SOURCE_UNSTEADY
    assert "hidden" not in failure.message + failure.advice


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (404, ExitCode.USER_INPUT, "correct the address"),
        (403, ExitCode.USER_INPUT, "secretRef"),
        (503, 1, "can be reached from the prepare pod"),
    ],
)
def test_what_the_server_refuses_is_said(site: Site, tmp_path: Path, status: int, code: int, advice: str) -> None:
    site.status = status
    failure = web_poll(tmp_path, site).look("a", code=code).failure
    assert failure is not None
    assert failure.reason is FailureReason.SOURCE_UNAVAILABLE
    assert f"HTTP {status}" in failure.message
    assert "hidden" not in failure.message
    assert advice in failure.advice


def test_a_connection_that_is_cut_is_no_change(site: Site, tmp_path: Path) -> None:
    site.headers = {"Content-Length": str(len(ROWS) + 1)}
    failure = web_poll(tmp_path, site).look("a", code=1).failure
    assert failure is not None
    assert "the connection ended after" in failure.message
