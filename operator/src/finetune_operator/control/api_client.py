"""Requests to the API server: plain dictionaries through the connection pool of kubernetes.aio.

The generated model classes are left out on purpose: building them costs five times the CPU of the request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlencode

import aiohttp
import kopf
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import ApiClient, Configuration

from finetune_operator import FIELD_MANAGER
from finetune_operator.control.metrics import API_REQUESTS
from finetune_operator.control.passes import note_write
from finetune_operator.control.resources import Resource
from finetune_operator.control.server_clock import ServerClock
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)

JSON = "application/json"
ATTEMPTS = 4  # with the waits between them about 4 s; after that the work queue's own backoff takes over
LONGEST_WAIT = 10.0  # seconds; a longer Retry-After is the work queue's matter
CHUNK = 200  # objects a LIST page; with 500, as client-go has it, a page is the peak of our memory

OUTDATED = "the CRD is older than this operator: kubectl apply --server-side -f crds/finetunejobs.yaml"


class ApiError(Exception):
    """The API server refused a request, or did not answer (status 0)."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        return self.status in (0, 429) or self.status >= 500


class RateLimit:
    """A token bucket; with qps 0 it never waits."""

    def __init__(self, qps: float, burst: int) -> None:
        self._qps = qps
        self._burst = burst
        self._tokens = float(burst)
        self._last = time.monotonic()

    async def take(self) -> None:
        """Waits until a request may be sent. Tokens may go below zero: who comes later waits longer."""
        if not self._qps:
            return
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._last) * self._qps)
        self._last = now
        self._tokens -= 1
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._qps)


async def load_configuration(kubeconfig: str | None) -> Configuration:
    """Credentials of the pod's service account, or of a kubeconfig when one is named."""
    configuration = Configuration()
    if kubeconfig:
        await kubernetes_config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    else:
        kubernetes_config.load_incluster_config(client_configuration=configuration)
    # A proxy for the internet, set in the pod's environment, must not come between us and the API server.
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


async def kopf_credentials(configuration: Configuration) -> kopf.ConnectionInfo:
    """The same credentials for kopf's watches. Called again by kopf when a token has been refused."""
    scheme, _, token = (await configuration.get_api_key_with_prefix("BearerToken") or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        ca_data=configuration.ca_cert_data if not configuration.ssl_ca_cert else None,
        insecure=not configuration.verify_ssl or None,
        scheme=scheme.capitalize() or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )


class Api:
    """The API server. All methods raise ApiError."""

    def __init__(
        self, configuration: Configuration, *, concurrency: int, timeout: float, qps: float = 0, burst: int = 100
    ) -> None:
        # A pass applies its children at the same time, so more connections than passes are useful.
        configuration.connection_pool_maxsize = 2 * concurrency + 8
        self._configuration = configuration
        self._client = ApiClient(configuration)
        self._client.user_agent = FIELD_MANAGER
        self._timeout = timeout
        self._limit = RateLimit(qps, burst)
        self.clock = ServerClock()

    async def close(self) -> None:
        await self._client.close()

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        """POST. Fails with 409 AlreadyExists when there is any object of that name, ours or not."""
        path = resource.path(manifest["metadata"]["namespace"])
        return await self.request("POST", path, resource.plural, body=manifest, params=_managed())

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        """PUT. Fails with 409 Conflict when the object is newer than the manifest's resourceVersion."""
        metadata = manifest["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        return await self.request("PUT", path, resource.plural, body=manifest, params=_managed())

    async def replace_status(self, resource: Resource, manifest: Manifest) -> Manifest:
        """PUT of /status: the spec may be left out. Fails with 409 Conflict when the object is newer than the manifest,
        and with 422 SchemaOutdated for a field that the CRD lacks, which would silently not be stored.

        Nobody else writes it, so that server-side apply would come to the same, and costs the API server more.
        """
        metadata = manifest["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"], "status")
        params = {**_managed(), "fieldValidation": "Strict"}
        return await self.request("PUT", path, f"{resource.plural}/status", body=manifest, params=params)

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest:
        return await self.request("GET", resource.path(namespace, name), resource.plural)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str = "") -> Manifest:
        """DELETE in the foreground: the object stays until its pods are gone. Fails with 409 for another uid."""
        body: Manifest = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        if uid:
            body["preconditions"] = {"uid": uid}
        return await self.request("DELETE", resource.path(namespace, name), resource.plural, body=body)

    async def list(self, resource: Resource, namespace: str | None, labels: str = "") -> AsyncIterator[Manifest]:
        """All objects of a namespace (None: of the cluster) with these labels, in chunks."""
        params = {"limit": str(CHUNK)}
        if selector := ",".join(part for part in (resource.selector, labels) if part):
            params["labelSelector"] = selector
        if resource.fields:
            params["fieldSelector"] = resource.fields
        while True:
            page = await self.request("GET", resource.path(namespace), resource.plural, params=params, verb="LIST")
            for item in page.get("items") or ():
                yield {"apiVersion": resource.api_version, "kind": resource.kind, **item}
            following = page.get("metadata", {}).get("continue")
            if not following:
                return
            params["continue"] = following

    async def request(
        self,
        method: str,
        path: str,
        label: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        verb: str | None = None,
    ) -> Manifest:
        """One request, repeated while the server is overloaded or away. `label` is for the metrics."""
        url = self._configuration.host + path + (f"?{urlencode(params)}" if params else "")
        for attempt in range(ATTEMPTS):
            await self._limit.take()
            try:
                answer = await self._once(method, url, body)
            except ApiError as error:
                API_REQUESTS.labels(verb or method, label, str(error.status)).inc()
                wait = error.retry_after or 0.1 * 4**attempt * random.uniform(0.75, 1.25)
                if not error.transient or attempt == ATTEMPTS - 1 or wait > LONGEST_WAIT:
                    raise
                logger.debug("api=%s %s retry_in=%.1f error=%s", method, path, wait, error)
                await asyncio.sleep(wait)
            else:
                API_REQUESTS.labels(verb or method, label, "200").inc()
                note_write(method, label, _named(body) or path.rpartition("/")[2])
                return answer
        raise AssertionError("the loop returns or raises")

    async def _once(self, method: str, url: str, body: Manifest | None) -> Manifest:
        # The keys of service account tokens come as application/jwk-set+json only.
        headers = {"Accept": f"{JSON}, */*;q=0.5", "Content-Type": JSON, "User-Agent": FIELD_MANAGER}
        authorization = await self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if authorization:
            headers["authorization"] = authorization
        asked = self.clock.monotonic()
        try:
            response = await self._client.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=aiohttp.ClientTimeout(total=self._timeout)
            )
            data = await response.read()
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError) as error:
            raise ApiError(0, "NoAnswer", f"{type(error).__name__}: {error}") from error
        self.clock.heard(response.headers.get("Date"), asked)
        return _parse(response.status, data, response.headers.get("Retry-After"))


def _named(body: Manifest | None) -> str:
    """What the log calls it: an Event, whose name is a digest, by its reason."""
    body = body or {}
    return str(body.get("reason") or body.get("metadata", {}).get("name") or "")


def _managed() -> dict[str, str]:
    return {"fieldManager": FIELD_MANAGER}


def _parse(status: int, data: bytes, retry_after: str | None) -> Manifest:
    try:
        content = json.loads(data) if data else {}
    except ValueError:
        content = {"message": data[:300].decode(errors="replace")}
    if 200 <= status < 300 and isinstance(content, dict):
        return content
    if "strict decoding error" in str(content):  # with 400, and the field's name
        content = {"reason": "SchemaOutdated", "message": f"{content['message']} ({OUTDATED})"}
        status = 422
    wait = float(retry_after) if retry_after and retry_after.isdigit() else None
    details = content if isinstance(content, dict) else {}
    raise ApiError(status, str(details.get("reason") or "Unknown"), str(details.get("message") or ""), wait)
