"""Creates FineTuneJobs as fast as the API server takes them, and watches when their first Jobs appear."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Container
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.bench.kubelet import Kubelets
from tests.cluster.control_plane import ControlPlane
from tests.operator_process import GROUP, job_manifest

CREATORS = 16  # requests at the same time


def session_to(plane: ControlPlane) -> aiohttp.ClientSession:
    """The administrator's requests to an API server. To be made in a running event loop, and closed."""
    context = ssl.create_default_context(cafile=str(plane.ca))
    headers = {"Authorization": f"Bearer {plane.token}"}
    connector = aiohttp.TCPConnector(ssl=context, limit=2 * CREATORS + 4)
    timeout = aiohttp.ClientTimeout(total=30)
    return aiohttp.ClientSession(plane.url, headers=headers, connector=connector, read_bufsize=2**21, timeout=timeout)


@dataclass
class Seen:
    """Monotonic times, by the name of the FineTuneJob."""

    created: dict[str, float] = field(default_factory=dict)  # the API server had answered our POST
    first_job: dict[str, float] = field(default_factory=dict)  # the watch told of its first Job
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)  # the newest of each job
    pod_said: dict[str, float] = field(default_factory=dict)  # the API server had answered our PATCH
    status_said: dict[str, float] = field(default_factory=dict)  # the watch told of a status that says so
    ready: set[str] = field(default_factory=set)

    def latencies(self) -> list[float]:
        """Seconds from the answer to the POST to the event of the first Job, sorted."""
        return sorted(self.first_job[name] - self.created[name] for name in self.created)

    def answers(self) -> list[float]:
        """Seconds from a pod's event to the status that tells of it, sorted."""
        return sorted(self.status_said[name] - self.pod_said[name] for name in self.pod_said)


class Load:
    """A client of its own with one connection pool; use as an asynchronous context. `only_jobs`: first Jobs are all
    that it watches, so that what measures a burst takes as little as possible of the machine."""

    def __init__(self, plane: ControlPlane, namespace: str, *, only_jobs: bool = False) -> None:
        self._plane = plane
        self.namespace = namespace
        self._only_jobs = only_jobs
        self.seen = Seen()

    async def __aenter__(self) -> Load:
        self._session = session_to(self._plane)
        self.kubelets = Kubelets(self._session, self.namespace)
        others = () if self._only_jobs else (self._watch_pods, self._watch_ours)
        self._watches = [asyncio.create_task(watch()) for watch in (self._watch_jobs, *others)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._session.close()

    async def create(self, name: str) -> str:
        """Makes a FineTuneJob. Returns its uid."""
        path = f"/apis/{GROUP}/v1alpha1/namespaces/{self.namespace}/finetunejobs"
        body = await self.post(path, json.dumps(job_manifest(name, self.namespace)))
        self.seen.created[name] = time.monotonic()
        return str(json.loads(body)["metadata"]["uid"])

    async def post(self, path: str, text: str) -> bytes:
        """The answer to a POST of JSON. Raises RuntimeError when it is refused."""
        async with self._session.post(path, data=text, headers={"Content-Type": "application/json"}) as answer:
            body = await answer.read()
            if answer.status != 201:
                raise RuntimeError(body.decode())
        return body

    async def create_all(self, names: list[str]) -> None:
        """All of them, a few at the same time."""
        limit = asyncio.Semaphore(CREATORS)

        async def one(name: str) -> None:
            async with limit:
                await self.create(name)

        await asyncio.gather(*(one(name) for name in names))

    async def wait_for_jobs(self, names: list[str], timeout: float) -> None:
        """Until each has its first Job. Raises RuntimeError when that takes too long."""
        await self._wait(names, self.seen.first_job, timeout, "no Job")

    async def wait_for_ready(self, names: list[str], timeout: float) -> None:
        """Until each serves."""
        await self._wait(names, self.seen.ready, timeout, "no server")

    async def say_unschedulable(self, name: str, timeout: float) -> None:
        """The scheduler says of the job's pod that it fits nowhere; returns when the status says so."""
        await self._wait([name], self.seen.pods, timeout, "no pod")
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
        await self.kubelets.patch(self.seen.pods[name], {"conditions": [condition]})
        self.seen.pod_said[name] = time.monotonic()
        await self._wait([name], self.seen.status_said, timeout, "no word of it")

    async def _wait(self, names: list[str], found: Container[str], timeout: float, lack: str) -> None:
        deadline = time.monotonic() + timeout
        while missing := [name for name in names if name not in found]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(missing)} of {len(names)} have {lack} after {timeout:.0f} s")
            for watch in self._watches:
                if watch.done():
                    watch.result()
            await asyncio.sleep(0.002)

    async def _watch_jobs(self) -> None:
        async for kind, job in self._events("/apis/batch/v1", "jobs", f"{GROUP}/stage=Prepare"):
            if kind == "ADDED":
                self.seen.first_job.setdefault(job["metadata"]["ownerReferences"][0]["name"], time.monotonic())

    async def _watch_pods(self) -> None:
        async for _, pod in self._events("/api/v1", "pods", f"{GROUP}/job"):
            self.seen.pods[pod["metadata"]["labels"][f"{GROUP}/job"]] = pod

    async def _watch_ours(self) -> None:
        async for _, job in self._events(f"/apis/{GROUP}/v1alpha1", "finetunejobs"):
            name, status = job["metadata"]["name"], job.get("status") or {}
            if ((status.get("run") or {}).get("failure") or {}).get("reason") == "Unschedulable":
                self.seen.status_said.setdefault(name, time.monotonic())
            if any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ()):
                self.seen.ready.add(name)

    async def _events(self, root: str, plural: str, selector: str = "") -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """(kind, object) of a watch that begins now."""
        params = {"watch": "true", **({"labelSelector": selector} if selector else {})}
        timeout = aiohttp.ClientTimeout(total=None)
        path = f"{root}/namespaces/{self.namespace}/{plural}"
        async with self._session.get(path, params=params, timeout=timeout) as answer:
            async for line in answer.content:
                event = json.loads(line)
                yield event["type"], event["object"]
