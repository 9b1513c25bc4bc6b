"""The HTTPS endpoint to which training pods report progress, by the protocol of Kubeflow's KEP-2779.

Stock transformers speaks it. A pod can report on its own job and run only. Any replica takes a report: one that
does not lead passes it on to the leader, because readiness cannot tell them apart without making rollouts hang.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from finetune_operator import names
from finetune_operator.control.api_client import Api
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.certificates import Certificates
from finetune_operator.control.environment import Environment
from finetune_operator.control.lease import Lease
from finetune_operator.control.metrics import PROGRESS_POSTS
from finetune_operator.control.progress import ProgressReports, ReportInvalidError, clean_report, read_json
from finetune_operator.control.resources import POD
from finetune_operator.control.tokens import KeysUnavailableError, PodIdentity, TokenRefusedError, TokenVerifier

logger = logging.getLogger(__name__)

ROUTE = "/progress/v1alpha1/namespaces/{namespace}/jobs/{job}/runs/{run:[0-9]{1,9}}"
MAX_BODY_BYTES = 64 * 1024  # 256 metrics with long names are about 20 KiB
FORWARDED = "X-Finetune-Forwarded"
FORWARD_SECONDS = 3.0  # transformers gives up after 5 s


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Receiver:
    """Checks and takes reports, or passes them on."""

    def __init__(
        self,
        cache: Cache,
        reports: ProgressReports,
        verifier: TokenVerifier,
        leads: Callable[[], bool],
        forward: Callable[[web.Request, bytes], Awaitable[int]],
    ) -> None:
        self._cache = cache
        self._reports = reports
        self._verifier = verifier
        self._leads = leads
        self._forward = forward

    async def handle(self, request: web.Request) -> web.Response:
        """POST of a report: 200, or 400, 401, 403, 404, 413, 503 with the reason as text."""
        try:
            status, text = await self._take(request), "ok"
        except Refused as refused:
            status, text = refused.status, str(refused)
            logger.debug("progress=refused status=%d reason=%r", status, text)
        PROGRESS_POSTS.labels(str(status)).inc()
        return web.Response(status=status, text=f"{text}\n")

    async def _take(self, request: web.Request) -> int:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused(401, "send the projected token as Authorization: Bearer")
        body = await _read(request)
        if not self._leads():
            return await self._forward(request, body)
        identity = await self._identity(token.strip())
        name, run = (request.match_info["namespace"], request.match_info["job"]), int(request.match_info["run"])
        self._check_pod(identity, name, run)
        try:
            reported = clean_report(read_json(body))
        except ReportInvalidError as error:
            raise Refused(400, str(error)) from None
        self._reports.take(name, run, identity.uid, reported)
        return 200

    async def _identity(self, token: str) -> PodIdentity:
        try:
            return await self._verifier.verify(token)
        except TokenRefusedError as error:
            raise Refused(401, f"token refused: {error}") from None
        except KeysUnavailableError as error:
            logger.warning("progress=no_keys error=%r", str(error))
            raise Refused(503, "the cluster's token keys cannot be fetched now") from None

    def _check_pod(self, identity: PodIdentity, name: Name, run: int) -> None:
        """The token's pod must be one that we know, of exactly this job and run."""
        if identity.namespace != name[0]:
            raise Refused(403, "the token is of another namespace")
        pod = self._cache.get(POD, (identity.namespace, identity.name))
        if pod is None or pod["metadata"].get("uid") != identity.uid:
            raise Refused(404, "no such pod is known yet")
        labels = pod["metadata"].get("labels") or {}
        if self._cache.owner_of(pod) != name or labels.get(names.LABEL_RUN) != str(run):
            raise Refused(403, "the token's pod belongs to another job or run")


async def _read(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refused(413, f"a report has at most {MAX_BODY_BYTES} bytes") from None


class Forwarder:
    """Passes a report on to the leader, once: a replica that thinks another leads does not pass it on again."""

    def __init__(self, certificates: Certificates, server_name: str | None, leader: Callable[[], str]) -> None:
        self._certificates = certificates
        self._server_name = server_name
        self._leader = leader

    async def __call__(self, request: web.Request, body: bytes) -> int:
        leader = self._leader()
        if not leader or request.headers.get(FORWARDED):
            raise Refused(503, "no leader is known now")
        headers = {"Authorization": request.headers["Authorization"], FORWARDED: "1"}
        timeout = aiohttp.ClientTimeout(total=FORWARD_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(
                    f"https://{leader}{request.path}",
                    data=body,
                    headers=headers,
                    ssl=self._certificates.client,
                    server_hostname=self._server_name,
                    allow_redirects=False,
                ) as answer,
            ):
                if answer.status == 200:
                    return 200
                raise Refused(answer.status, (await answer.text())[:200].strip())
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise Refused(503, "the leader does not answer") from None


async def serve_progress(
    environment: Environment,
    certificates: Certificates,
    api: Api,
    cache: Cache,
    reports: ProgressReports,
    lease: Lease | None,
) -> web.AppRunner:
    """Starts the endpoint; the caller cleans the runner up."""
    settings = environment.settings
    receiver = Receiver(
        cache,
        reports,
        TokenVerifier(api, settings.progress_audience, environment.token_issuer, now=api.clock.now),
        lease.valid if lease else lambda: True,
        Forwarder(
            certificates,
            urlsplit(settings.progress_url or "").hostname,
            lambda: lease.leader_address if lease else "",
        ),
    )
    application = web.Application(client_max_size=MAX_BODY_BYTES)
    application.add_routes([web.post(ROUTE, receiver.handle)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, environment.progress_host, environment.progress_port, ssl_context=certificates.server)
    await site.start()
    return runner
