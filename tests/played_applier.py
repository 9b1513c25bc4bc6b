"""A Reconciler whose writes nobody carries out: for what it does before and after them."""

from __future__ import annotations

from finetune_operator.control.apply import Applied
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.last_words import LastWords
from finetune_operator.control.progress import ProgressReports
from finetune_operator.control.reconcile import Decide, Reconciler
from finetune_operator.control.workqueue import WorkQueue
from finetune_operator.settings import Settings


class PlayedApplier:
    """Notes what it is asked for, and says `applied` of the children."""

    def __init__(self, applied: Applied | None = None) -> None:
        self.asked: list[str] = []
        self._applied = applied or Applied()

    async def children(self, uid: str, manifests: object) -> Applied:
        self.asked.append("children")
        return self._applied

    async def status(self, job: object, status: object) -> bool:
        self.asked.append("status")
        return False

    async def delete(self, refs: object) -> None:
        return None


def reconciler(cache: Cache, queue: WorkQueue[Name], applier: PlayedApplier, decide: Decide) -> Reconciler:
    return Reconciler(
        cache=cache,
        queue=queue,
        applier=applier,  # type: ignore[arg-type]
        decide=decide,
        settings=Settings(),
        progress=ProgressReports(queue, 10),
        last_words=LastWords(applier, cache),  # type: ignore[arg-type]
    )
