"""https:// sources: one file of a host that the platform allows, and of no other.

The host's addresses are looked up once and checked; the connection then goes to the checked address, so that a
second look-up cannot lead elsewhere. Certificates are verified for the host's name.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import http.client
import ipaddress
import logging
import socket
import ssl
import string
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from finetune_api.conditions import FailureReason
from finetune_api.run_config import SourcePolicy
from finetune_trainer.errors import DIVIDE, TrainerError, UserInputError
from finetune_trainer.sources.location import Https

log = logging.getLogger(__name__)

MAX_REDIRECTS = 5
CHUNK = 2**20  # bytes read at once
COMPARED_BYTES = 64 * 2**20  # of a file whose server names no version
SOCKET_SECONDS = 30.0  # without a byte for so long, the server is taken as gone
REDIRECTS = (301, 302, 303, 307, 308)
LATER = (408, 425, 429, 500, 502, 503, 504)  # worth another try


def fetch_file(location: Https, target: Path, policy: SourcePolicy, authorization: str | None = None) -> Path:
    """Download the file to `target`; return it. `authorization` becomes the Authorization header.

    Raises UserInputError (SourceUnavailable) when the host is not allowed, the address is private, a redirect leads
    to another host, or the file is too large or takes too long.
    """
    deadline = time.monotonic() + policy.timeout_seconds
    with _answer(location, policy, authorization) as (response, parts):
        _save(response, parts, target, policy, deadline)
    return target


def version(location: Https, policy: SourcePolicy, authorization: str | None = None) -> str | None:
    """Of the file, by what the server says of it; by its content where it says nothing, and None where that is large.
    By GET, whose body is left: HEAD is refused by many, and by every address that is signed for GET. Raises as
    `fetch_file`."""
    with _answer(location, policy, authorization) as (response, parts):
        if etag := response.headers.get("ETag"):
            return f"etag {etag}"
        length = _length(response)
        if modified := response.headers.get("Last-Modified"):
            return f"modified {modified} {length}"
        return None if length > COMPARED_BYTES else _digest(response, parts, length)


def _digest(response: http.client.HTTPResponse, parts: SplitResult, expected: int) -> str | None:
    digest, total = hashlib.sha256(), 0
    while chunk := _read(response, parts):
        total += len(chunk)
        if total > COMPARED_BYTES:
            return None
        digest.update(chunk)
    _refuse_cut(parts, total, expected)
    return f"sha256 {digest.hexdigest()}"


@contextlib.contextmanager
def _answer(
    location: Https, policy: SourcePolicy, authorization: str | None
) -> Iterator[tuple[http.client.HTTPResponse, SplitResult]]:
    """The server's answer, its body still unread, and the address that gave it."""
    url = location.url
    for _ in range(MAX_REDIRECTS + 1):
        parts = _allowed(url, policy)
        connection = _connect(parts, policy)
        try:
            response = _get(connection, parts, authorization)
            next_url = response.headers.get("Location") if response.status in REDIRECTS else None
            if not next_url:
                _refuse_status(response.status, parts)
                yield response, parts
                return
        finally:
            connection.close()
        url = _same_host(urljoin(url, next_url), parts)
    _refuse(f"{_name(urlsplit(url))}: more than {MAX_REDIRECTS} redirects", "name the file's final address")


def _allowed(url: str, policy: SourcePolicy) -> SplitResult:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        _refuse(f"{_name(parts)}: only https is allowed", "use an https:// address")
    if not any(fnmatch.fnmatchcase(host, pattern.lower()) for pattern in policy.https_hosts):
        allowed = ", ".join(policy.https_hosts) or "none"
        _refuse(
            f"{_name(parts)}: the host {host} is not among those that the platform allows ({allowed})",
            "use pvc://, s3:// or hf://, or ask the platform to allow the host",
        )
    return parts


def _connect(parts: SplitResult, policy: SourcePolicy) -> http.client.HTTPSConnection:
    host, port = parts.hostname or "", parts.port or 443
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            raise _later(parts, f"the name server does not answer for {host} ({error.strerror})") from error
        _refuse(f"{_name(parts)}: the host {host} has no address ({_why(error)})", "correct the host's name")
    addresses = [str(entry[4][0]) for entry in found]
    for address in map(_plain_address, addresses):
        if not address.is_global and not policy.allow_private_addresses:
            _refuse(
                f"{_name(parts)}: the host {host} has the private address {address}, which is not allowed",
                "use a public host, or ask the platform to allow private addresses",
            )
    return _PinnedConnection(host, port, addresses)


def _why(error: OSError | UnicodeError) -> str:
    return str(getattr(error, "strerror", None) or error)


def _plain_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Without a zone, and as IPv4 where it is that in IPv6's clothes: ::ffff:127.0.0.1 is private too."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


class _PinnedConnection(http.client.HTTPSConnection):
    """Connects to the first of these addresses that answers, and verifies the certificate for the host's name."""

    def __init__(self, host: str, port: int, addresses: Sequence[str]) -> None:
        # The environment's SSL_CERT_FILE is honoured: a private mirror has a private authority.
        self._verifier = ssl.create_default_context()
        super().__init__(host, port, timeout=SOCKET_SECONDS, context=self._verifier)
        self._addresses = addresses

    def connect(self) -> None:
        self.sock = self._verifier.wrap_socket(self._first_that_answers(), server_hostname=self.host)

    def _first_that_answers(self) -> socket.socket:
        *others, last = self._addresses
        for address in others:
            with contextlib.suppress(OSError):
                return socket.create_connection((address, self.port), self.timeout)
        return socket.create_connection((last, self.port), self.timeout)


def _get(
    connection: http.client.HTTPSConnection,
    parts: SplitResult,
    authorization: str | None,
) -> http.client.HTTPResponse:
    """Ask for the file."""
    headers = {"User-Agent": "finetune-trainer", "Accept-Encoding": "identity"}
    if authorization:
        headers["Authorization"] = authorization
    try:
        # As browsers send it: what is not ASCII is encoded, and what is encoded stays.
        wanted = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=string.punctuation)
        connection.request("GET", wanted, headers=headers)
        return connection.getresponse()
    except ssl.SSLCertVerificationError as error:
        _refuse(
            f"{_name(parts)}: the certificate is not valid: {error.verify_message}",
            "correct the host's name, or ask the platform to trust its authority",
        )
    except (OSError, http.client.HTTPException) as error:
        raise _later(parts, f"{type(error).__name__}: {error}") from error


def _refuse_status(status: int, parts: SplitResult) -> None:
    if status in LATER:
        raise _later(parts, f"HTTP {status}")
    if status != 200:
        gone = status in (404, 410)
        advice = "correct the address" if gone else "put HTTPS_AUTHORIZATION into secretRef's Secret"
        _refuse(f"{_name(parts)} answered HTTP {status}", advice)


def _save(
    response: http.client.HTTPResponse, parts: SplitResult, target: Path, policy: SourcePolicy, deadline: float
) -> None:
    expected = _length(response)
    if expected > policy.max_bytes:
        _refuse_size(parts, policy)
    total = 0
    with target.open("wb") as file:
        while chunk := _read(response, parts):
            total += len(chunk)
            if total > policy.max_bytes:
                _refuse_size(parts, policy)
            if time.monotonic() > deadline:
                seconds = policy.timeout_seconds
                _refuse(
                    f"{_name(parts)}: not complete after {seconds} seconds", "use a smaller file or a nearer source"
                )
            file.write(chunk)
    _refuse_cut(parts, total, expected)


def _length(response: http.client.HTTPResponse) -> int:
    """Bytes that are announced; -1 where none are."""
    announced = response.headers.get("Content-Length", "").strip()
    return int(announced) if announced.isdecimal() else -1


def _refuse_cut(parts: SplitResult, total: int, expected: int) -> None:
    if expected >= 0 and total != expected:
        raise _later(parts, f"the connection ended after {total} of {expected} bytes")


def _read(response: http.client.HTTPResponse, parts: SplitResult) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _later(parts, f"{type(error).__name__}: {error}") from error


def _later(parts: SplitResult, what: str) -> TrainerError:
    """A server that does not answer now may do so later: a fault of the system, so that the stage is tried again."""
    return TrainerError(
        f"{_name(parts)}: {what}",
        advice="see that the host can be reached from the prepare pod",
        reason=FailureReason.SOURCE_UNAVAILABLE,
    )


def _same_host(url: str, before: SplitResult) -> str:
    try:
        after = urlsplit(url)
        place = (after.scheme, after.hostname, after.port or 443)
    except ValueError as error:
        _refuse(f"{_name(before)} redirects to no valid address: {error}", "name the file's final address")
    if place != ("https", before.hostname, before.port or 443):
        _refuse(
            f"{_name(before)} redirects to another host ({after.hostname}), which is not followed",
            "name the file's final address, if the platform allows that host",
        )
    return url


def _refuse_size(parts: SplitResult, policy: SourcePolicy) -> NoReturn:
    _refuse(f"{_name(parts)}: larger than the {policy.max_bytes} bytes that are allowed", DIVIDE)


def _name(parts: SplitResult) -> str:
    """The address without its query, which may hold a signature."""
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _refuse(message: str, advice: str) -> NoReturn:
    raise UserInputError(message, advice=advice, reason=FailureReason.SOURCE_UNAVAILABLE)
