"""A certificate that is renewed as the kubelet renews it: one swap of a link."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from pathlib import Path

import pytest
from tests.certificate import write_certificate

from finetune_operator.control.certificates import Certificates
from finetune_operator.control.environment import Tls
from finetune_operator.control.metrics import CERTIFICATE_EXPIRY, REGISTRY


def renew(folder: Path, version: str) -> Path:
    """Files of a new version behind the link that the pod sees; returns the folder of this version."""
    made = folder / version
    made.mkdir()
    write_certificate(made)
    (made / "ca.crt").write_bytes((made / "tls.crt").read_bytes())
    (folder / "new").symlink_to(made)
    os.replace(folder / "new", folder / "now")
    return made


def mounted(folder: Path) -> Tls:
    return Tls(*(folder / "now" / name for name in ("tls.crt", "tls.key", "ca.crt")))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


class Client:
    """One connection that trusts the authority in one folder only."""

    async def connect(self, port: int, folder: Path) -> Client:
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        return self

    async def works(self) -> bool:
        self.writer.write(b"hello\n")
        return await self.reader.readline() == b"hello\n"


async def test_new_connections_get_the_new_certificate_and_old_ones_stand(tmp_path: Path) -> None:
    first = renew(tmp_path, "1")
    certificates = Certificates(mounted(tmp_path))
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=certificates.server)
    port = server.sockets[0].getsockname()[1]
    old = await Client().connect(port, first)
    assert await old.works()
    assert not certificates.refresh()
    second = renew(tmp_path, "2")
    assert certificates.refresh()
    assert not certificates.refresh()
    assert await old.works(), "a connection that stands is not dropped"
    new = await Client().connect(port, second)
    assert await new.works()
    with pytest.raises(ssl.SSLCertVerificationError):
        await Client().connect(port, first)
    assert certificates.ca == (second / "ca.crt").read_text()
    for client in (old, new):
        client.writer.close()
    server.close()
    await server.wait_closed()


async def test_half_a_change_is_left_until_it_is_whole(tmp_path: Path) -> None:
    first = renew(tmp_path, "1")
    certificates = Certificates(mounted(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    write_certificate(other)
    key = (first / "tls.key").read_bytes()
    (first / "tls.key").write_bytes((other / "tls.key").read_bytes())
    before = certificates.client
    assert not certificates.refresh()
    (first / "tls.key").unlink()
    assert not certificates.refresh()
    assert certificates.client is before
    (first / "tls.key").write_bytes(key)
    assert certificates.refresh()


def test_the_end_of_the_certificate_is_a_metric_also_of_the_renewed_one(tmp_path: Path) -> None:
    name = "finetune_progress_certificate_expiry_timestamp_seconds"
    renew(tmp_path, "1")
    certificates = Certificates(mounted(tmp_path))
    before = REGISTRY.get_sample_value(name)
    assert before
    assert 0 < before - time.time() <= 86_400
    CERTIFICATE_EXPIRY.set(0)
    renew(tmp_path, "2")
    assert certificates.refresh()
    after = REGISTRY.get_sample_value(name)
    assert after
    assert after >= before
