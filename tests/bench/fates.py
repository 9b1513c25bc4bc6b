"""Pods of the soak, whose kubelets do not always have good news."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp

from finetune_api.conditions import ExitCode
from tests.bench.kubelet import Kubelets, now
from tests.operator_process import GROUP
from tests.simulator import good_summary


class Fates(Kubelets):
    """Pods that take their time, and do not all end well."""

    def __init__(self, session: aiohttp.ClientSession, namespace: str, chance: random.Random) -> None:
        super().__init__(session, namespace)
        self._chance = chance
        self.trained: dict[str, list[str]] = {}  # name of a Job that trains -> its pods that ended well
        self.deleted: set[str] = set()
        self.running: dict[str, str] = {}  # name -> stage

    async def _live(self, pod: dict[str, Any]) -> None:
        labels, name = pod["metadata"]["labels"], pod["metadata"]["name"]
        stage, run = labels[f"{GROUP}/stage"], int(labels[f"{GROUP}/run"])
        if not await self.say(pod, "Running", {"running": {"startedAt": now()}}, ready=True) or stage == "Serve":
            return
        self.running[name] = stage
        await asyncio.sleep(self._chance.uniform(0.2, 4))
        self.running.pop(name, None)
        code = self._chance.choices([ExitCode.DONE, ExitCode.INTERRUPTED, 1], [90, 6, 4])[0]
        message = "" if code else good_summary(stage, run)
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message, "finishedAt": now()}
        state = {"terminated": {**ended, "startedAt": now()}}
        said = await self.say(pod, "Failed" if code else "Succeeded", state, ready=False)
        if said and not code and stage == "Train":
            self.trained.setdefault(pod["metadata"]["ownerReferences"][0]["name"], []).append(name)
