"""A list that the cache is brought up to: what is listed is stored, what is not is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection

from finetune_operator.control.cache import Cache, Name, name_of
from finetune_operator.control.resources import Resource
from finetune_operator.plan import Manifest


async def relist(
    cache: Cache, resource: Resource, listing: AsyncIterator[Manifest], known: Callable[[], Collection[Name]]
) -> tuple[int, list[Manifest]]:
    """How many objects were news, and those that are gone: of the `known` ones all that were not listed.

    What a watch tells meanwhile is newer than the list, unless it is late itself: versions tell. What it told to be
    gone is gone. Raises ApiError; what was listed until then counts.
    """
    under_way = cache.begin_relist(resource)
    try:
        listed: set[Name] = set()
        news = 0
        async for body in listing:
            name = name_of(body)
            listed.add(name)
            touched = name in under_way.touched
            if not touched or cache.get(resource, name):
                news += cache.store(resource, body, from_watch=touched)
        gone = [name for name in known() if name not in listed | under_way.touched]
        bodies = [found for name in gone if (found := cache.get(resource, name))]
        for name in gone:
            cache.drop(resource, name)
        return news, bodies
    finally:
        cache.end_relist(resource, under_way)
