"""The same objects without an operator: what no operator on this machine could be faster than.

The load generator makes the FineTuneJob, its ConfigMap and its first Job by itself, three requests a job and nothing
else, of manifests that the builders made once.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

from finetune_api.job import FineTuneJob
from finetune_operator.control.resources import resource_of
from finetune_operator.decide import decide
from finetune_operator.plan import Manifest, Observed
from finetune_operator.settings import Settings
from tests.bench.load import CREATORS, Load
from tests.operator_process import job_manifest

NAME, UID = "the-name-of-the-job", "the-uid-of-the-job"


def children_of(namespace: str) -> list[tuple[str, str]]:
    """(path, JSON) of the first children of a job that is called NAME."""
    body = job_manifest(NAME, namespace)
    job = FineTuneJob.model_validate({**body, "metadata": {**body["metadata"], "uid": UID}})
    plan = decide(job, Observed(), datetime.now(UTC), Settings())
    return [(_path(each), json.dumps(each)) for each in plan.apply]


def _path(manifest: Manifest) -> str:
    return resource_of(manifest).path(manifest["metadata"]["namespace"])


async def create_all(load: Load, names: list[str]) -> None:
    """Jobs with their children, a few at the same time."""
    limit, children = asyncio.Semaphore(CREATORS), children_of(load.namespace)

    async def one(name: str) -> None:
        async with limit:
            uid = await load.create(name)
            for path, text in children:
                await load.post(path, text.replace(NAME, name).replace(UID, uid))

    await asyncio.gather(*(one(name) for name in names))
