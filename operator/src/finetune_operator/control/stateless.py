"""kopf keeps nothing on or of our objects.

By default it copies every object of every event two or three times, to know what a change handler has not handled
yet. We have no change handlers; that was two thirds of the CPU on its side.
"""

from __future__ import annotations

from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory


class NoDiffBase(kopf.DiffBaseStorage):
    """Never sees a difference, because it looks at nothing."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:
        return {}

    def fetch(self, *, body: Any) -> Any:
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        """Nothing is stored."""


class NoProgress(kopf.ProgressStorage):
    """No handler of ours is ever half done."""

    def fetch(self, *, key: Any, body: Any) -> Any:
        return None

    def store(self, *, key: Any, record: Any, body: Any, patch: Any) -> None:
        """Nothing is stored."""

    def purge(self, *, key: Any, body: Any, patch: Any) -> None:
        """Nothing was stored."""

    def touch(self, *, body: Any, patch: Any, value: Any) -> None:
        """Nothing is stored."""

    def clear(self, *, essence: Any) -> Any:
        return essence


class NoMemories(ResourceMemories):
    """No record per object, 0.9 KB each: of daemons, indexes and handlers that resume, which we do not have."""

    async def recall(self, raw_body: Any, **options: Any) -> ResourceMemory:
        return await super().recall(raw_body, **{**options, "ephemeral": True})
