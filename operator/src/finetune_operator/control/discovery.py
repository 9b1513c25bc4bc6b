"""Which kinds this cluster has: those of Kubernetes itself, and Kueue's Workloads where Kueue is installed.

Looked at once, when a replica begins to lead. Every authenticated user may ask (ClusterRole system:discovery).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from finetune_operator.control.api_client import Api, ApiError
from finetune_operator.control.resources import WATCHED, WORKLOAD, Resource

logger = logging.getLogger(__name__)

READ = ("v1", "v1beta2", "v1beta1")  # versions whose conditions we can read, the best first


async def watched_kinds(api: Api) -> tuple[Resource, ...]:
    """What to list and watch. Raises ApiError when nobody answers: to guess would hide why a queue holds a job."""
    version = _best(await _versions(api))
    logger.info("kueue=%s", version or "absent")
    return (*WATCHED, replace(WORKLOAD, version=version)) if version else WATCHED


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
