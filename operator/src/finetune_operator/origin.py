"""The job whose model another one goes on from."""

from __future__ import annotations

from collections.abc import Callable

from finetune_api.job import FineTuneJob
from finetune_api.lineage import MOST_ANCESTORS
from finetune_operator.plan import Origin
from finetune_operator.runs import newest_promoted

Look = Callable[[str], FineTuneJob | None]
"""The job of this name in the namespace, or None."""


def origin(job: FineTuneJob, look: Look) -> Origin:
    """The job that is named, and those that it waits for itself, until one has a promoted run or is seen again.

    No further than a model may be built on others: each look costs, and whoever may make jobs could make a long chain.
    """
    ref = job.spec.base_model.fine_tune_job
    found = look(ref.name) if ref is not None and ref.name != job.metadata.name else None
    waits_for: list[str] = []
    at = found
    while at is not None and len(waits_for) < MOST_ANCESTORS and newest_promoted(at.status.runs) is None:
        further = at.spec.base_model.fine_tune_job
        if further is None or further.name in waits_for:
            break
        waits_for.append(further.name)
        at = look(further.name) if further.name != job.metadata.name else None
    return Origin(found, tuple(waits_for))
