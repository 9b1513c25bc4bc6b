"""A web server with TLS, and the certificate that its clients have to trust."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.certificate import LOOPBACK, write_self_signed

KEY, CERTIFICATE = "key.pem", "cert.pem"


def make_certificate(folder: Path) -> Path:
    """A certificate for localhost and data.example.test, signed by itself, with its key beside it. Returns its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName("localhost"), x509.DNSName("data.example.test"), x509.IPAddress(LOOPBACK)]
    write_self_signed(folder / CERTIFICATE, folder / KEY, key, "localhost", names)
    return folder / CERTIFICATE


@contextlib.contextmanager
def serving_https(handler: type[BaseHTTPRequestHandler], folder: Path) -> Iterator[int]:
    """Answers by the handler on a port of this machine, with the certificate of `folder`, while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are the test
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
