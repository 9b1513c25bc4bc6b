"""What kubelets would say of pods, for many jobs at once: each pod runs, and ends as if its stage went well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from datetime import UTC, datetime
from typing import Any

import aiohttp

from tests.operator_process import GROUP
from tests.simulator import good_summary

AT_ONCE = 16
MERGE = {"Content-Type": "application/merge-patch+json"}
OURS = "app.kubernetes.io/managed-by=finetune-operator"


class Kubelets:
    """A kwok of our own: no container is started. Use as a task: `await run()` never returns.

    An API server that is away is waited for, as kubelets do.
    """

    def __init__(self, session: aiohttp.ClientSession, namespace: str) -> None:
        self._session = session
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._limit = asyncio.Semaphore(AT_ONCE)
        self._seen: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Looks after every pod of ours that there is or will be."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, KeyError, ValueError):
                await self._watch()
            await asyncio.sleep(0.2)

    async def _watch(self) -> None:
        params = {"watch": "true", "labelSelector": OURS}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
        async with self._session.get(self._path, params=params, timeout=timeout) as answer:
            async for line in answer.content:
                pod = json.loads(line)["object"]
                if pod["metadata"]["uid"] not in self._seen:
                    self._seen.add(pod["metadata"]["uid"])
                    task = asyncio.create_task(self._live(pod))
                    self._tasks.add(task)
                    task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            print(f"kubelet: {error!r}", file=sys.stderr)

    async def _live(self, pod: dict[str, Any]) -> None:
        labels = pod["metadata"]["labels"]
        stage = labels[f"{GROUP}/stage"]
        await self.say(pod, "Running", {"running": {"startedAt": now()}}, ready=True)
        if stage != "Serve":
            message = good_summary(stage, int(labels[f"{GROUP}/run"]))
            ended = {"exitCode": 0, "reason": "Completed", "message": message, "startedAt": now(), "finishedAt": now()}
            await self.say(pod, "Succeeded", {"terminated": ended}, ready=False)

    async def say(self, pod: dict[str, Any], phase: str, state: dict[str, Any], *, ready: bool) -> bool:
        """The status of a pod of one container. False when the pod is gone."""
        container = pod["spec"]["containers"][0]
        entry = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
        conditions = [
            {"type": kind, "status": "True" if ready else "False", "lastTransitionTime": now()}
            for kind in ("Ready", "ContainersReady")
        ]
        states = [{**entry, "ready": ready, "started": ready, "state": state}]
        return await self.patch(
            pod, {"phase": phase, "startTime": now(), "conditions": conditions, "containerStatuses": states}
        )

    async def patch(self, pod: dict[str, Any], status: dict[str, Any]) -> bool:
        """Says it until the API server has heard it. False when the pod is gone."""
        path = f"{self._path}/{pod['metadata']['name']}/status"
        body = json.dumps({"metadata": {"uid": pod["metadata"]["uid"]}, "status": status})
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._limit, self._session.patch(path, data=body, headers=MERGE) as answer:
                    text = await answer.text()
                if answer.status in (404, 409):
                    return False
                if answer.status == 200:
                    return True
                if answer.status in (400, 422):  # an API server that is coming up may say 401 or 403
                    raise RuntimeError(text)
            await asyncio.sleep(0.5)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
