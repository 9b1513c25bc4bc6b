"""The progress receiver's certificate, taken up anew when its files change, as cert-manager and the kubelet do it.

Connections that stand keep the certificate they began with; the next handshake gets the new one.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509  # pyjwt[crypto] brings it

from finetune_operator.control.environment import Tls
from finetune_operator.control.metrics import CERTIFICATE_EXPIRY

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0  # the kubelet itself takes about a minute to bring a changed Secret into the pod


@dataclass(frozen=True, slots=True)
class Loaded:
    """One state of the files. `ca` is the text that training pods trust."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    ca: str


class Certificates:
    """The newest usable state of the files. Raises OSError or ssl.SSLError when they cannot be used at the start."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen = self._signature()
        self._loaded = self._load()
        # Loading into a context that is in use is not atomic: a handshake may see the new certificate with the old
        # key. So this one only hands every handshake over to the newest.
        self.server = _server_context(tls)
        self.server.sni_callback = self._hand_over

    @property
    def client(self) -> ssl.SSLContext:
        """For connections to another replica."""
        return self._loaded.client

    @property
    def ca(self) -> str:
        return self._loaded.ca

    def refresh(self) -> bool:
        """Looks at the files. Whether they had changed and are in use now; unusable ones are left for the next time."""
        try:
            signature = self._signature()
            if signature == self._seen:
                return False
            self._loaded = self._load()
        except (OSError, ValueError) as error:  # half a change: certificate and key do not fit together yet
            logger.warning("certificate=unusable kept=old error=%r", str(error))
            return False
        self._seen = signature
        logger.info("certificate=reloaded")
        return True

    async def watch(self, changed: Callable[[str], None]) -> None:
        """Looks again and again; `changed` gets the new authority's text."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.refresh():
                changed(self.ca)

    def _signature(self) -> tuple[tuple[int, int, int], ...]:
        stats = [path.stat() for path in (self._tls.cert, self._tls.key, self._tls.ca)]
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in stats)

    def _load(self) -> Loaded:
        client = ssl.create_default_context(cafile=str(self._tls.ca))
        loaded = Loaded(_server_context(self._tls), client, self._tls.ca.read_text())
        CERTIFICATE_EXPIRY.set(expiry(self._tls))
        return loaded

    def _hand_over(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: object) -> None:
        connection.context = self._loaded.server


def expiry(tls: Tls) -> float:
    """When the first of the certificates ends, the authority's included: Unix time. After that no new training reports
    its progress; the trainings themselves go on."""
    found = [each for path in (tls.cert, tls.ca) for each in x509.load_pem_x509_certificates(path.read_bytes())]
    return min(each.not_valid_after_utc.timestamp() for each in found)


def _server_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert, tls.key)
    return context
