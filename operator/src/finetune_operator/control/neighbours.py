"""Other operators of the cluster, as far as they meddle with our namespaces.

Every child says in an annotation which release made it, by the place of its Lease. A child that a watch tells as new
and that another release made is the proof that both serve its namespace now: what was there before we began to
watch (of a release that moved, say) is not told as new.
"""

from __future__ import annotations

import logging
import time

from finetune_operator import names
from finetune_operator.control.metrics import OTHER_OPERATOR
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)


class Neighbours:
    """`release` is our own: namespace and name of the Lease; empty where there is none, and nothing is looked for."""

    def __init__(self, release: str) -> None:
        self._release = release
        self._told: set[tuple[str, str]] = set()

    def see(self, body: Manifest) -> None:
        """An object that has just been made. Each neighbour is told of once for a namespace, and counted always."""
        other = names.annotation(body, names.ANNOTATION_OPERATOR)
        if not self._release or not other or other == self._release:
            return
        OTHER_OPERATOR.labels(other).set(time.time())
        namespace = body["metadata"]["namespace"]
        if (other, namespace) not in self._told:
            self._told.add((other, namespace))
            logger.error(
                "operator=overlap namespace=%s other=%s object=%s: two operators serve this namespace; "
                "give each its own watchNamespaces",
                namespace,
                other,
                body["metadata"]["name"],
            )
