"""Which kinds this cluster has: those of Kubernetes itself, and Kueue's Workloads where Kueue is installed.

Looked at when a replica begins to lead, and then with every list of everything: kopf takes up no other kind while it
runs, so a replica that should watch otherwise ends, and the next leader does. Every authenticated user may ask
(ClusterRole system:discovery).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from finetune_operator.control.api_client import Api, ApiError
from finetune_operator.control.resources import WATCHED, WORKLOAD, Resource

logger = logging.getLogger(__name__)

SECOND_LOOK_SECONDS = 30.0  # an API server that has started serves all its definitions long before
READ = ("v1", "v1beta2", "v1beta1")  # versions whose conditions we can read, the best first


async def watched_kinds(api: Api) -> tuple[Resource, ...]:
    """What to list and watch. Raises ApiError when nobody answers: to guess would hide why a queue holds a job."""
    version = _best(await _versions(api))
    return (*WATCHED, replace(WORKLOAD, version=version)) if version else WATCHED


async def has_changed(api: Api, watched: Sequence[Resource]) -> bool:
    """Whether others should be watched, by one look: after a watch has failed. Nobody who answers is no answer."""
    try:
        found = await watched_kinds(api)
    except ApiError:
        return False
    if tuple(found) == tuple(watched):
        return False
    _tell(found, watched)
    return True


async def until_changed(api: Api, watched: Sequence[Resource], seconds: float) -> None:
    """Returns when others should be watched, by two looks in a row: an API server that has just come up does not know
    all its kinds yet. One that is away changes nothing."""
    different = False
    while True:
        await asyncio.sleep(min(seconds, SECOND_LOOK_SECONDS) if different else seconds)
        try:
            found = await watched_kinds(api)
        except ApiError:
            continue
        if tuple(found) != tuple(watched) and different:
            _tell(found, watched)
            return
        different = tuple(found) != tuple(watched)


def kueue(watched: Sequence[Resource]) -> str:
    """The version of its Workloads that is watched, or `absent`."""
    return next((each.version for each in watched if each.kind == WORKLOAD.kind), "absent")


def _tell(found: Sequence[Resource], watched: Sequence[Resource]) -> None:
    logger.warning("kueue=%s before=%s restarting", kueue(found), kueue(watched))


async def _versions(api: Api) -> Sequence[str]:
    try:
        group = await api.request("GET", f"/apis/{WORKLOAD.group}", "apigroups")
    except ApiError as error:
        if error.status in (403, 404):  # not there, or a cluster that tells nobody
            return ()
        raise
    return [str(each.get("version")) for each in group.get("versions") or ()]


def _best(served: Sequence[str]) -> str | None:
    return next((version for version in READ if version in served), None)
