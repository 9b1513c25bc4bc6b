"""The requests of the OCI distribution protocol that a push needs.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md, and for tokens
https://distribution.github.io/distribution/spec/auth/token
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from finetune_api.conditions import FailureReason
from finetune_trainer.errors import TrainerError
from finetune_trainer.packaging.credentials import CA, refused, trusted

DOCKER_CONFIG = ".dockerconfigjson"
ATTEMPTS = 4  # of a request; the Job's own retries begin the push again, with what is there already left out
PAUSE = 1.0  # seconds after the first failure, doubled after each
TIMEOUT = httpx.Timeout(60, connect=10)
ACCEPTED = (
    ", ".join(f"application/vnd.oci.image.{kind}.v1+json" for kind in ("index", "manifest"))
    + ", application/vnd.docker.distribution.manifest.v2+json"
    + ", application/vnd.docker.distribution.manifest.list.v2+json"
)
LOGIN = f"put {DOCKER_CONFIG} or username and password of a user who may push into the Secret of secretRef"

Login = tuple[str, str]


def split(uri: str) -> tuple[str, str, str]:
    """(host, repository, tag) of oci://HOST/REPOSITORY:TAG."""
    host, _, rest = uri.partition("://")[2].partition("/")
    repository, _, tag = rest.rpartition(":")
    return host, repository, tag


@dataclass(slots=True)
class Client:
    """One repository of one registry."""

    uri: str
    base: str  # scheme and host
    repository: str
    http: httpx.Client
    login: Login | None
    authorization: str | None = None
    sleep: Callable[[float], None] = field(default=time.sleep)

    @classmethod
    def open(cls, uri: str, secret: Mapping[str, str]) -> Self:
        """Reads the Secret; nothing is asked of the registry yet. Raises UserInputError when it cannot be read."""
        host, repository, _ = split(uri)
        plain = uri.startswith("oci+http://")
        http = httpx.Client(timeout=TIMEOUT, verify=trusted(secret, uri))
        scheme = "http" if plain else "https"
        return cls(uri, f"{scheme}://{host}", repository, http, _login(host, secret, uri))

    def digest_of(self, reference: str) -> str | None:
        """Digest of the manifest that a tag names; None when there is none."""
        answer = self._ask("GET", self._path(f"manifests/{reference}"), headers={"Accept": ACCEPTED}, missing=True)
        if answer is None:
            return None
        return f"sha256:{hashlib.sha256(answer.content).hexdigest()}"

    def has_blob(self, digest: str) -> bool:
        """A registry that keeps its blobs in a bucket does not say yes, but where it lies there."""
        answer = self._tried(lambda: self._once("HEAD", self._path(f"blobs/{digest}")))
        return answer.has_redirect_location or (answer.status_code != 404 and self._checked(answer).is_success)

    def send_blob(self, digest: str, size: int, chunks: Callable[[], Iterator[bytes]]) -> None:
        """In one request. The registry itself compares the digest."""

        def send() -> httpx.Response:
            begun = self._once("POST", self._path("blobs/uploads/"))
            if begun.is_error:
                return begun
            place = httpx.URL(self.base + "/").join(begun.headers["Location"]).copy_merge_params({"digest": digest})
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            return self._once("PUT", place, headers=headers, content=chunks())

        answer = self._tried(send)
        if answer.status_code == 401:  # a token lasts minutes; by now there is a new one
            answer = self._tried(send)
        self._checked(answer)

    def send_manifest(self, reference: str, media_type: str, content: bytes) -> None:
        self._ask("PUT", self._path(f"manifests/{reference}"), headers={"Content-Type": media_type}, content=content)

    def _path(self, rest: str) -> httpx.URL:
        return httpx.URL(f"{self.base}/v2/{self.repository}/{rest}")

    def _ask(self, method: str, url: httpx.URL, *, missing: bool = False, **more: Any) -> httpx.Response | None:
        """The answer; None when nothing is there and that is no mistake (`missing`)."""
        answer = self._tried(lambda: self._once(method, url, **more))
        if missing and answer.status_code == 404:
            return None
        return self._checked(answer)

    def _once(self, method: str, url: httpx.URL, **more: Any) -> httpx.Response:
        """One request, and once more with a token where the registry asks for one. The login goes to the registry and
        to the place that it sends us to for tokens, never to where it sends the bytes."""
        headers = dict(more.pop("headers", {}))
        own = url.host == httpx.URL(self.base).host
        answer = self.http.request(method, url, headers={**headers, **self._authorized(own)}, **more)
        if answer.status_code != 401 or not own:
            return answer
        self._log_in(answer)
        if not isinstance(more.get("content"), bytes | None):
            return answer  # its bytes are gone: the caller begins again
        return self.http.request(method, url, headers={**headers, **self._authorized(own)}, **more)

    def _authorized(self, own: bool) -> dict[str, str]:
        return {"Authorization": self.authorization} if own and self.authorization else {}

    def _tried(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        for attempt in range(ATTEMPTS):
            try:
                answer = send()
                if answer.status_code != 429 and not answer.is_server_error:
                    return answer
                trouble: str | Exception = _words(answer)
            except httpx.TransportError as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise refused(
                        f"{self.uri}: the registry's certificate is not trusted: {error}",
                        f"put the certificate of its authority into {CA} of the Secret",
                    ) from error
                trouble = error
            if attempt < ATTEMPTS - 1:
                self.sleep(PAUSE * 2**attempt)
        raise TrainerError(
            f"{self.uri}: {trouble or type(trouble).__name__}",
            advice="it is tried again; see that the package pod can reach the registry",
            reason=FailureReason.DESTINATION_UNAVAILABLE,
        )

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        if answer.status_code in (401, 403):
            raise refused(f"{self.uri}: the registry refuses to take it ({_words(answer)})", LOGIN)
        raise refused(f"{self.uri}: {_words(answer)}", "correct the destination in to, or ask who runs the registry")

    def _log_in(self, answer: httpx.Response) -> None:
        """By what the registry asks for: a token of its own server, or name and password themselves."""
        challenge = answer.headers.get("WWW-Authenticate", "")
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and self.login:
            self.authorization = _basic(self.login)
        if kind.lower() != "bearer":
            return
        values = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        scope = f"repository:{self.repository}:pull,push"
        query = {"service": values.get("service", ""), "scope": scope}
        headers = {"Authorization": _basic(self.login)} if self.login else {}
        told = self.http.get(values.get("realm", ""), params=query, headers=headers)
        if told.is_success:
            found = told.json()
            self.authorization = f"Bearer {found.get('token') or found.get('access_token')}"


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(":".join(login).encode()).decode()


def _words(answer: httpx.Response) -> str:
    """The registry's own, short."""
    try:
        errors = answer.json()["errors"]
        return "; ".join(f"{error['code']}: {error.get('message', '')}" for error in errors)[:300]
    except (ValueError, KeyError, TypeError, httpx.ResponseNotRead):
        return f"{answer.status_code} {answer.reason_phrase}"


def _login(host: str, secret: Mapping[str, str], uri: str) -> Login | None:
    if "username" in secret and "password" in secret:
        return secret["username"], secret["password"]
    text = secret.get(DOCKER_CONFIG) or _own_config(secret)
    if text is None:
        return None
    try:
        auths: Mapping[str, Any] = json.loads(text)["auths"]
        entries = {re.sub(r"^https?://|/.*$", "", name): entry for name, entry in auths.items()}
        entry = entries.get(host)
        if entry is None:
            return None
        if "username" in entry:
            return entry["username"], entry["password"]
        name, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        return name, password
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refused(f"{uri}: {DOCKER_CONFIG} of the Secret cannot be read", LOGIN) from error


def _own_config(secret: Mapping[str, str]) -> str | None:
    """On a laptop: what `docker login` has left, unless it went into a keychain."""
    if "HOME" not in secret:
        return None  # it is a Secret, not a user's environment
    path = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
        return text if "auths" in json.loads(text) else None
    except (OSError, ValueError):
        return None
