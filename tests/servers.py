"""Real servers that exports go to: an S3 server, an OCI registry and MLflow, each with a user
and a password."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from tests.cluster import binaries
from tests.cluster.processes import Component, free_ports, start, wait_until

LOOPBACK = "127.0.0.1"
USER, PASSWORD = "publisher", "correct-horse-battery"
HASHED = "$2b$04$6uxQjHknYFakRhacEaKSR.ouqefrrdDejSAFN0Ku7LKBQpTHpOfn."  # bcrypt
S3_KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1"}


@dataclass
class Server:
    """A running one. `restart` begins it anew on the same port and data."""

    url: str
    host: str
    component: Component

    def s3(self) -> Any:
        """A client of the S3 server's owner."""
        session = boto3.session.Session(
            aws_access_key_id=S3_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
        return session.client("s3", endpoint_url=self.url)


def _answers(address: str, port: int) -> bool:
    with socket.create_connection((address, port), timeout=1):
        return True


@contextmanager
def _running(
    name: str,
    port: int,
    command: list[Any],
    root: Path,
    scheme: str = "http",
    environment: dict[str, str] | None = None,
    address: str = LOOPBACK,
) -> Iterator[Server]:
    component = start(name, command, root / "logs", env=environment)
    try:
        wait_until(lambda: _answers(address, port), 120, name, component.tail)
        yield Server(f"{scheme}://{address}:{port}", f"{address}:{port}", component)
    finally:
        component.end()
        with suppress(ProcessLookupError):  # MLflow's has a child that answers, in the session that `start` made
            os.killpg(component.pid, signal.SIGKILL)


@contextmanager
def s3_server(root: Path) -> Iterator[Server]:
    """Keeps metadata of objects beside them, as AWS does."""
    for folder in ("data", "metadata"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    port = free_ports(1)[0]
    keys = ("--access", S3_KEYS["AWS_ACCESS_KEY_ID"], "--secret", S3_KEYS["AWS_SECRET_ACCESS_KEY"])
    place = ("posix", "--sidecar", root / "metadata", root / "data")
    command = [binaries.versitygw(), "--port", f"127.0.0.1:{port}", *keys, *place]
    with _running("versitygw", port, command, root) as server:
        yield server


@contextmanager
def mlflow_server(root: Path) -> Iterator[Server]:
    """MLflow's tracking server, with a user and a password."""
    root.mkdir(parents=True, exist_ok=True)
    port, database = free_ports(1)[0], f"sqlite:///{root / 'runs.db'}"
    (root / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = sqlite:///{root / 'users.db'}\n"
        f"admin_username = {USER}\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    place = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", database)
    command = [
        binaries.mlflow(),
        "-m",
        "mlflow",
        "server",
        *place,
        "--artifacts-destination",
        root / "files",
        "--app-name",
        "basic-auth",
    ]
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(root / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only-for-tests",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with _running("mlflow", port, command, root, environment=environment) as server:
        yield server


@contextmanager
def registry(
    root: Path,
    certificate: tuple[Path, Path] | None = None,
    port: int | None = None,
    address: str = LOOPBACK,
    elsewhere: str = "",
) -> Iterator[Server]:
    """With basic authentication, and with TLS when `certificate` is (certificate, key). `elsewhere`: a URL to which it
    sends who asks for a blob, as one does that keeps them in a bucket."""
    root.mkdir(parents=True, exist_ok=True)
    port = port or free_ports(1)[0]
    (root / "htpasswd").write_text(f"{USER}:{HASHED}\n")
    tls = f"\n  tls: {{certificate: {certificate[0]}, key: {certificate[1]}}}" if certificate else ""
    sent = f"\nmiddleware: {{storage: [{{name: redirect, options: {{baseurl: {elsewhere}}}}}]}}" if elsewhere else ""
    (root / "config.yaml").write_text(
        f"""version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {root / "data"}}}}}
http:
  addr: {address}:{port}{tls}
auth: {{htpasswd: {{realm: test, path: {root / "htpasswd"}}}}}{sent}
"""
    )
    command = [binaries.registry(), "serve", root / "config.yaml"]
    scheme = "https" if certificate else "http"
    with _running("registry", port, command, root, scheme, address=address) as server:
        yield server
