"""The control plane starts without the half of the client that it has no use for, and keeps nothing in kopf."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from finetune_operator.control.stateless import NoMemories

UNUSED = ("kubernetes.client", "kubernetes.config", "requests", "requests_oauthlib", "websocket", "chardet")
LOOK = f"""
import sys
import finetune_operator.__main__
from kubernetes.aio.client import ApiClient
assert not [name for name in {UNUSED!r} if sys.modules.get(name)], sys.modules.keys()
try:
    import kubernetes.client
except ModuleNotFoundError:
    print("left out")
"""


def test_the_synchronous_client_and_what_it_imports_are_not_loaded() -> None:
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout == "left out\n", found.stderr


def test_a_client_that_somebody_has_imported_stays_whole() -> None:
    look = (
        "import kubernetes.client; import finetune_operator.control.operator; print(kubernetes.client.V1Pod.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout == "V1Pod\n", found.stderr


def test_kopf_remembers_no_object() -> None:
    memories = NoMemories()
    body = {"metadata": {"uid": "1"}}

    async def twice() -> bool:
        return await memories.recall(body, noticed_by_listing=True) is await memories.recall(body)

    assert not asyncio.run(twice())
    assert not list(memories.iter_all_memories())
