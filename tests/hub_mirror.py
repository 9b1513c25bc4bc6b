"""A hub in miniature: a real HTTP server that answers the few requests that a download makes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT, OLD = "a" * 40, "b" * 40
TOKEN = "hf_of_a_test"


@dataclass
class Repository:
    """Files of the newest commit, which is the first of `commits`; `closed` is the error code for who has no token."""

    files: dict[str, bytes]
    closed: str = ""
    commits: tuple[str, ...] = (COMMIT, OLD)
    names_blobs: bool = True


@dataclass
class Mirror:
    """A hub in miniature. `asked` are the paths of all requests, in order."""

    repositories: dict[str, Repository]
    asked: list[str] = field(default_factory=list)
    down: bool = False
    url: str = ""

    def answer(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        if self.down:
            return 503, {}, b""
        words = path.partition("?")[0].strip("/").split("/")
        api = words[0] == "api"
        kind = "datasets" if "datasets" in words[:2] else "models"
        words = [word for word in words if word not in ("api", "models", "datasets")]
        repository = self.repositories.get(f"{kind}/{'/'.join(words[:2])}")
        if repository is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if repository.closed and token != f"Bearer {TOKEN}":
            return (403 if repository.closed == "GatedRepo" else 401), {"X-Error-Code": repository.closed}, b"{}"
        revision = words[3] if len(words) > 3 else repository.commits[0]
        if revision not in repository.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if api and words[2:3] == ["tree"]:
            return (
                200,
                {},
                json.dumps(_listed(repository, "/".join(words[4:]), "recursive=true" in path.lower())).encode(),
            )
        if api:
            siblings = [_sibling(repository, name, data) for name, data in repository.files.items()]
            return 200, {}, json.dumps({"id": "/".join(words[:2]), "sha": revision, "siblings": siblings}).encode()
        name = "/".join(words[4:])
        if name not in repository.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        data = repository.files[name]
        return 200, {"X-Repo-Commit": revision, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data


def _sibling(repository: Repository, name: str, data: bytes) -> dict[str, Any]:
    blob = {"blobId": hashlib.sha1(data).hexdigest()} if repository.names_blobs else {}
    return {"rfilename": name, "size": len(data), **blob}


def _listed(repository: Repository, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The files and folders below a folder, as the hub lists them."""
    prefix = f"{folder}/" if folder else ""
    inside = {name.removeprefix(prefix): data for name, data in repository.files.items() if name.startswith(prefix)}
    folders = {name.partition("/")[0] for name in inside if "/" in name}
    files = {name: data for name, data in inside.items() if recursive or "/" not in name}
    return [
        *({"type": "directory", "path": prefix + name, "oid": "0" * 40} for name in sorted(folders)),
        *(
            {"type": "file", "path": prefix + name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ),
    ]


@contextlib.contextmanager
def serving(hub: Mirror, address: str = "127.0.0.1") -> Iterator[Mirror]:
    """The mirror on a port of this machine's address, while the block lasts; its address is in `hub.url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path, self.headers.get("Authorization", ""))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer((address, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://{address}:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
