"""Whose turn it is to have its servers replaced: how many are being replaced now, and who waits (`stages/turn.py`).

Nothing here has to be right for ever: the periodic list brings every job a pass, and each pass counts anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from finetune_operator import names
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.metrics import SERVERS_WAITING
from finetune_operator.control.resources import DEPLOYMENT
from finetune_operator.plan import Plan


class Turns:
    """Jobs that replace servers, by the cache and by the passes under way, of which it has not heard yet."""

    def __init__(self, cache: Cache, at_once: int) -> None:
        self._cache = cache
        self._at_once = at_once
        self._taken: set[Name] = set()  # Deployments
        self._waiting: dict[Name, None] = {}  # jobs, in the order in which they came

    def others(self, name: Name) -> int:
        """How many other jobs replace theirs."""
        own = _server(name)
        return self._count() - (own in self._cache.rolling or own in self._taken)

    def decided(self, name: Name, plan: Plan) -> None:
        """What the pass over this job will do. Called before anything else can be decided."""
        if plan.awaits_turn:
            self._waiting[name] = None
        else:
            self._waiting.pop(name, None)
        if any(manifest["kind"] == DEPLOYMENT.kind for manifest in plan.apply):
            self._taken.add(_server(name))
        SERVERS_WAITING.set(len(self._waiting))

    def ended(self, name: Name) -> Sequence[Name]:
        """The pass is over, and the cache knows what it wrote. Who may come now."""
        self._taken.discard(_server(name))
        return list(islice(self._waiting, max(0, self._at_once - self._count())))

    def forget(self, name: Name) -> None:
        """The job is gone."""
        self._waiting.pop(name, None)
        SERVERS_WAITING.set(len(self._waiting))

    def _count(self) -> int:
        """Not a union: in a burst of promotions thousands are being replaced, and each pass asks."""
        rolling = self._cache.rolling
        return len(rolling) + sum(each not in rolling for each in self._taken)


def _server(name: Name) -> Name:
    """The job's Deployment."""
    return name[0], names.serve_name(name[1])
