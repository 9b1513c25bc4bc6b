"""Creates FineTuneJobs as fast as the API server takes them, and watches when their first Jobs appear."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.cluster.control_plane import ControlPlane
from tests.operator_process import GROUP, job_manifest

CREATORS = 16  # requests at the same time


@dataclass
class Seen:
    """Monotonic times, by the name of the FineTuneJob."""

    created: dict[str, float] = field(default_factory=dict)  # the API server had answered our POST
    first_job: dict[str, float] = field(default_factory=dict)  # the watch told of its first Job

    def latencies(self) -> list[float]:
        """Seconds from the answer to the POST to the event of the first Job, sorted."""
        return sorted(self.first_job[name] - self.created[name] for name in self.created)


class Load:
    """A client of its own with one connection pool; use as an asynchronous context."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._namespace = namespace
        self.seen = Seen()

    async def __aenter__(self) -> Load:
        context = ssl.create_default_context(cafile=str(self._plane.ca))
        headers = {"Authorization": f"Bearer {self._plane.token}"}
        connector = aiohttp.TCPConnector(ssl=context, limit=CREATORS + 2)
        self._session = aiohttp.ClientSession(self._plane.url, headers=headers, connector=connector, read_bufsize=2**21)
        self._watch = asyncio.create_task(self._watch_jobs())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        await self._session.close()

    async def create(self, name: str) -> None:
        path = f"/apis/{GROUP}/v1alpha1/namespaces/{self._namespace}/finetunejobs"
        async with self._session.post(path, json=job_manifest(name, self._namespace)) as answer:
            body = await answer.text()
            if answer.status != 201:
                raise RuntimeError(body)
        self.seen.created[name] = time.monotonic()

    async def create_all(self, names: list[str]) -> None:
        """All of them, a few at the same time."""
        limit = asyncio.Semaphore(CREATORS)

        async def one(name: str) -> None:
            async with limit:
                await self.create(name)

        await asyncio.gather(*(one(name) for name in names))

    async def wait_for_jobs(self, names: list[str], timeout: float) -> None:
        """Until each has its first Job. Raises RuntimeError when that takes too long."""
        deadline = time.monotonic() + timeout
        while missing := [name for name in names if name not in self.seen.first_job]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(missing)} of {len(names)} have no Job after {timeout:.0f} s")
            if self._watch.done():
                self._watch.result()
            await asyncio.sleep(0.002)

    async def _watch_jobs(self) -> None:
        path = f"/apis/batch/v1/namespaces/{self._namespace}/jobs"
        params = {"watch": "true", "labelSelector": f"{GROUP}/stage=Prepare"}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(path, params=params, timeout=timeout) as answer:
            async for line in answer.content:
                event: dict[str, Any] = json.loads(line)
                if event["type"] == "ADDED":
                    owner = event["object"]["metadata"]["ownerReferences"][0]["name"]
                    self.seen.first_job.setdefault(owner, time.monotonic())
