"""The glue to kopf: its watches fill the cache, nothing more.

Only `on.event` handlers: they write nothing to the objects (no finalizer, no annotation), and what they learn is
level-triggered by our own queue. kopf's retries, timers, daemons and indexes are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from finetune_operator.control.api_client import CHUNK, kopf_credentials
from finetune_operator.control.cache import Cache, Name, name_of
from finetune_operator.control.metrics import EVENTS_SEEN
from finetune_operator.control.neighbours import Neighbours
from finetune_operator.control.resources import FINE_TUNE_JOB, Resource
from finetune_operator.control.stateless import NoDiffBase, NoProgress
from finetune_operator.plan import Manifest

Enqueue = Callable[[Name], None]


def kopf_settings(watched: Sequence[Resource]) -> kopf.OperatorSettings:
    """How kopf watches."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Events are ours to post, deduplicated
    settings.peering.standalone = True  # a `default` peering of another operator would pause us
    settings.scanning.disabled = True  # no right to list CRDs and namespaces needed
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.watching.chunk_size = CHUNK
    # The server ends a watch after 5 min, so that a half-dead connection cannot last; the client waits a bit longer.
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 5
    settings.networking.request_timeout = 30
    # A worker task per object holds the last event as it came, with all that we leave out: it ends soon.
    settings.queueing.idle_timeout = 0.1
    settings.queueing.exit_timeout = 0.5
    for resource in watched:
        key = (resource.group, resource.version, resource.plural)
        if resource.selector:
            settings.watching.label_selectors[key] = resource.selector
        if resource.fields:
            settings.watching.field_selectors[key] = resource.fields
    return settings


def take_event(
    cache: Cache,
    resource: Resource,
    kind: str | None,
    body: Manifest,
    enqueue: Enqueue,
    neighbours: Neighbours | None = None,
) -> None:
    """Brings the cache up to date and asks for a pass over the job that is concerned, if anything is new."""
    if kind == "ADDED" and neighbours:
        neighbours.see(body)
    EVENTS_SEEN.labels(resource.plural).inc()
    cache.told[resource.plural] += 1
    job = name_of(body) if resource is FINE_TUNE_JOB else cache.job_of(body)
    if kind == "DELETED":
        changed = cache.remove(resource, body)
    else:
        body.setdefault("apiVersion", resource.api_version)
        body.setdefault("kind", resource.kind)
        changed = cache.store(resource, body)
        job = job or cache.job_of(body)
    if changed and job:
        enqueue(job)
    if changed and resource is FINE_TUNE_JOB:  # made, changed or gone: who goes on from it looks anew
        for waiting in cache.dependents(name_of(body)):
            enqueue(waiting)


def make_registry(
    configuration: Configuration,
    cache: Cache,
    enqueue: Enqueue,
    watched: Sequence[Resource],
    neighbours: Neighbours | None = None,
) -> kopf.OperatorRegistry:
    """kopf's registry with one event handler a kind."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await kopf_credentials(configuration)

    for resource in watched:
        _register(registry, resource, cache, enqueue, neighbours)
    return registry


def _register(
    registry: kopf.OperatorRegistry,
    resource: Resource,
    cache: Cache,
    enqueue: Enqueue,
    neighbours: Neighbours | None,
) -> None:
    @kopf.on.event(resource.group, resource.version, resource.plural, id=resource.plural, registry=registry)
    async def on_event(event: Any, **_: Any) -> None:
        take_event(cache, resource, event["type"], dict(event["object"]), enqueue, neighbours)
