"""The Lease under an API server that is slow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.virtual_time import run_virtually

from finetune_operator.control.environment import LeaseNames
from finetune_operator.control.lease import Lease, LeaseLostError


class SlowApi:
    """Takes what it is told, after some seconds each."""

    def __init__(self, create: float, replace: float) -> None:
        self._seconds = {"create": create, "replace": replace}
        self.renewals = 0

    async def get(self, resource: object, namespace: str, name: str) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": ""}}

    async def replace(self, resource: object, manifest: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(self._seconds["replace" if self.renewals else "create"])
        self.renewals += 1
        return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.renewals)}}


async def held(api: SlowApi, seconds: float) -> bool:
    """Whether the Lease is still held after so long."""
    lease = Lease(api, LeaseNames("home", "operator", "me"), asyncio.get_running_loop().time)  # type: ignore[arg-type]
    await lease.acquire()
    try:
        await asyncio.wait_for(lease.hold(), seconds)
    except LeaseLostError:
        return False
    except TimeoutError:
        return lease.valid()
    raise AssertionError("it holds for ever")


@pytest.mark.parametrize(
    ("create", "replace", "kept"), [(0.1, 0.1, True), (6, 3, True), (9, 0.5, True), (1, 4, True), (1, 11, False)]
)
def test_a_leader_renews_in_time_while_answers_come_within_it(create: float, replace: float, kept: bool) -> None:
    api = SlowApi(create, replace)
    assert run_virtually(held(api, 100)) is kept
    assert not kept or api.renewals > 5
