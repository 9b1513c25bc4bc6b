"""The job whose model another one goes on from, out of the cache."""

from __future__ import annotations

from functools import partial

from pydantic import ValidationError

from finetune_api.base import RECORDED
from finetune_api.job import FineTuneJob
from finetune_operator.control.cache import Cache
from finetune_operator.control.resources import FINE_TUNE_JOB
from finetune_operator.origin import origin
from finetune_operator.plan import Origin


def origin_in_cache(cache: Cache, job: FineTuneJob) -> Origin:
    """What `baseModel.fineTuneJob` of the job names, as the watches have told it."""
    return origin(job, partial(_cached, cache, job.metadata.namespace))


def dependents_in_cache(cache: Cache, job: FineTuneJob) -> tuple[FineTuneJob | None, ...]:
    """Jobs that go on from a run of this one, where it matters: None for one that cannot be read."""
    if job.spec.output.retention is None:
        return ()
    own = (job.metadata.namespace, job.metadata.name)
    return tuple(_cached(cache, *name) for name in sorted(cache.dependents(own)) if name != own)


def _cached(cache: Cache, namespace: str, name: str) -> FineTuneJob | None:
    body = cache.get(FINE_TUNE_JOB, (namespace, name))
    if body is None or body["metadata"].get("deletionTimestamp"):
        return None
    try:
        return FineTuneJob.model_validate(body, context=RECORDED)
    except ValidationError:
        return None  # its own pass says what is wrong with it
