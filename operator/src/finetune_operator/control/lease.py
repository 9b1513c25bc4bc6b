"""One of several replicas acts: the holder of a Lease.

A follower watches nothing: starting the watches takes a second or two for a thousand jobs, and warm caches in
every replica would double the load on the API server for that. Correctness does not hang on the Lease: names are
fixed, creation is refused when the object is there, and a status is written only against the version it was
decided on. The Lease keeps two replicas from doing the same work twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from finetune_api import GROUP
from finetune_operator.control.api_client import Api, ApiError
from finetune_operator.control.environment import LeaseNames
from finetune_operator.control.metrics import LEADER
from finetune_operator.control.resources import LEASE
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)

ADDRESS = f"{GROUP}/progress-address"


class LeaseLostError(Exception):
    """Another replica may lead by now; this process must end."""


class Lease:
    """`acquire()`, then `hold()` until it raises LeaseLostError; `release()` on exit."""

    def __init__(self, api: Api, names: LeaseNames, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._names = names
        self._clock = clock
        # A pod whose container restarted is another holder: it does not know what its former self was doing.
        self._identity = f"{names.identity}_{uuid.uuid4().hex[:8]}"
        self._seen: tuple[str, float] = ("", 0.0)  # version of the other's Lease, and when it was seen first
        self._renewed = float("-inf")
        self._held: Manifest | None = None
        self.leader_address = ""  # where the leader receives progress, as far as we know

    def valid(self) -> bool:
        """Whether nobody else can lead now. False in a process that was frozen for longer than the renewal."""
        return self._held is not None and self._clock() - self._renewed < self._names.renew_seconds

    async def acquire(self) -> None:
        """Returns when this replica leads."""
        logger.info("lease=%s/%s identity=%s waiting", self._names.namespace, self._names.name, self._identity)
        while not await self._try_to_lead():
            await asyncio.sleep(self._names.retry_seconds)
        LEADER.set(1)
        logger.info("lease=%s/%s identity=%s leading", self._names.namespace, self._names.name, self._identity)

    async def hold(self) -> None:
        """Renews for ever, at once where the last answer was long in coming. Raises LeaseLostError."""
        tried = self._renewed
        while True:
            await asyncio.sleep(max(0.0, tried + self._names.retry_seconds - self._clock()))
            tried = self._clock()
            if not self.valid():
                raise LeaseLostError("not renewed in time")
            await self._renew()

    async def release(self) -> None:
        """Lets another replica lead at once. An error only means that it has to wait."""
        held, self._held = self._held, None
        LEADER.set(0)
        if held is None:
            return
        try:
            await self._write(held, holder="", seconds=1)
            logger.info("lease=%s/%s released", self._names.namespace, self._names.name)
        except (ApiError, TimeoutError) as error:
            logger.warning("lease=%s/%s not_released=%r", self._names.namespace, self._names.name, str(error))

    async def _try_to_lead(self) -> bool:
        started = self._clock()
        try:
            async with asyncio.timeout(self._names.renew_seconds):
                found = await self._find()
                if found is not None and not self._is_free(found):
                    return False
                self._held = await (self._write(found) if found else self._api.create(LEASE, self._manifest(None)))
        except (ApiError, TimeoutError) as error:
            if not (isinstance(error, ApiError) and error.status == 409):  # 409: another replica was faster
                logger.warning("lease=%s/%s error=%r", self._names.namespace, self._names.name, str(error))
            return False
        self._renewed = started
        self.leader_address = self._names.address
        return True

    async def _renew(self) -> None:
        """One renewal. Its time counts from before the request: the server may have taken it at once."""
        assert self._held is not None
        started = self._clock()
        try:
            async with asyncio.timeout(max(0.1, self._renewed + self._names.renew_seconds - started)):
                self._held = await self._write(self._held)
        except ApiError as error:
            if error.status in (404, 409):
                raise LeaseLostError(error.message) from error
            logger.warning("lease=%s/%s not_renewed=%r", self._names.namespace, self._names.name, str(error))
        except TimeoutError:
            raise LeaseLostError("the API server did not answer in time") from None
        else:
            self._renewed = started

    async def _find(self) -> Manifest | None:
        try:
            return await self._api.get(LEASE, self._names.namespace, self._names.name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _is_free(self, found: Manifest) -> bool:
        """Nobody holds it, or its version did not change for its duration. Clocks of two machines are not compared."""
        spec = found.get("spec", {})
        self.leader_address = (found["metadata"].get("annotations") or {}).get(ADDRESS, "")
        if not spec.get("holderIdentity"):
            return True
        version = found["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, self._clock())
            return False
        return self._clock() - self._seen[1] > float(spec.get("leaseDurationSeconds") or 15)

    async def _write(self, current: Manifest, holder: str | None = None, seconds: float | None = None) -> Manifest:
        return await self._api.replace(LEASE, self._manifest(current, holder, seconds))

    def _manifest(self, current: Manifest | None, holder: str | None = None, seconds: float | None = None) -> Manifest:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = (current or {}).get("spec", {})
        mine = spec.get("holderIdentity") == self._identity
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {
                "namespace": self._names.namespace,
                "name": self._names.name,
                "annotations": {ADDRESS: self._names.address},
                **({"resourceVersion": current["metadata"]["resourceVersion"]} if current else {}),
            },
            "spec": {
                "holderIdentity": self._identity if holder is None else holder,
                "leaseDurationSeconds": max(1, round(seconds or self._names.duration_seconds)),
                "acquireTime": spec.get("acquireTime", now) if mine else now,
                "renewTime": now,
                "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (not mine and current is not None),
            },
        }
