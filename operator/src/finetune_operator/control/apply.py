"""Executes a Plan: the only module that writes what belongs to a job. (The Lease is lease.py's.)

A child is created by POST, the one verb with which the API server refuses to touch an object of the same name
that somebody else made: server-side apply would merge into it silently, owner reference included, and the
garbage collector would later delete it. A changed child is replaced by PUT against the version that was seen.
So is the status, against the version that was decided on: a leader that was frozen and comes back late cannot
overwrite what its successor wrote.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_api import API_VERSION, GROUP, KIND
from finetune_api.conditions import FailureReason
from finetune_operator import FIELD_MANAGER, names
from finetune_operator.control.allowance import Allowance
from finetune_operator.control.api_client import Api, ApiError
from finetune_operator.control.cache import Cache, Name, name_of
from finetune_operator.control.metrics import APPLY_FAILURES, CORRECTIONS
from finetune_operator.control.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    FINE_TUNE_JOB,
    SERVICE,
    Resource,
    controller_uid,
    resource_of,
)
from finetune_operator.drift import has_drifted, is_autoscaled
from finetune_operator.plan import ApplyFailure, Event, Manifest, ObjectRef

logger = logging.getLogger(__name__)

NOTE_BYTES = 1024  # of UTF-8: the API server's limit for the note of an Event
CORRECTIONS_AT_ONCE, CORRECTION_SECONDS = 5, 60.0  # of one object; another controller may want it otherwise
EVENTS_AT_ONCE, EVENT_SECONDS = 25, 300.0  # about one job, as client-go has it: a flapping state must not flood etcd
SERVED = (DEPLOYMENT, SERVICE)  # the children that live long enough to be changed by others
SERVICE_ALLOCATED = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort")


class StaleError(Exception):
    """The job, or what is in its way, changed since it was read: another pass decides anew."""


class GoneError(Exception):
    """The job or its namespace is being deleted."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of the children: refused for good, or (by admission) made otherwise than we wrote it."""

    refused: ApplyFailure | None = None
    otherwise: bool = False


class Applier:
    """Writes children, status and events of jobs. Raises ApiError for what may be over at the next attempt."""

    def __init__(self, api: Api, cache: Cache, instance: str, release: str = "") -> None:
        self._api = api
        self._cache = cache
        self._instance = instance
        self._release = release
        self._events = Allowance[str](EVENTS_AT_ONCE, EVENT_SECONDS)
        self._corrections = Allowance[tuple[str, Name]](CORRECTIONS_AT_ONCE, CORRECTION_SECONDS)

    async def children(self, job_uid: str, manifests: Sequence[Manifest]) -> Applied:
        """Creates or updates all children, and what came of it.

        First what pods mount: a Job must not start beside a ConfigMap of somebody else. Then all others at the
        same time, each attempted before the first error is raised.
        """
        mounted = [each for each in manifests if each["kind"] == CONFIG_MAP.kind]
        others = [each for each in manifests if each["kind"] != CONFIG_MAP.kind]
        otherwise = False
        for group in (mounted, others):
            results = await asyncio.gather(*(self._child(job_uid, each) for each in group), return_exceptions=True)
            if failure := _first_failure(results):
                APPLY_FAILURES.labels(failure.reason).inc()
                return Applied(refused=failure)
            otherwise = otherwise or True in results
        return Applied(otherwise=otherwise)

    async def delete(self, refs: Sequence[ObjectRef]) -> None:
        """Deletes children in the foreground, unless they are gone or being deleted already."""
        await asyncio.gather(*(self._delete(each) for each in refs))

    async def status(self, job: Manifest, status: dict[str, Any]) -> bool:
        """Writes the whole status, when it differs from what is stored. Returns whether it wrote."""
        if job.get("status", {}) == status:
            return False
        metadata = {key: job["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status}
        try:
            stored = await self._api.replace_status(FINE_TUNE_JOB, body)
        except ApiError as error:
            if error.status == 409:
                raise StaleError(error.message) from error
            if error.status == 404:
                self._cache.drop(FINE_TUNE_JOB, name_of(job))
                raise GoneError(error.message) from error
            raise
        self._cache.store(FINE_TUNE_JOB, stored)
        return True

    async def events(self, job: Manifest, events: Sequence[Event]) -> None:
        """Posts Events about what was decided on this version of the job. Those that the API server does not take are
        told to the log.

        Their name is made of that version and their content: posted again for the same change, it is the same
        Event, whoever repeats; when the same happens again later, it is another one. Names are in the order of what
        happened: `kubectl describe` sorts by a time that has no fractions and that new Events do not have, and so
        leaves them in the order of their names.
        """
        await asyncio.gather(*(self._event(job, each, place) for place, each in enumerate(events)))

    async def _child(self, job_uid: str, manifest: Manifest) -> ApplyFailure | bool:
        """Why it was refused, or whether it was made otherwise."""
        resource = resource_of(manifest)
        known = self._cache.get(resource, name_of(manifest))
        try:
            if known is None or controller_uid(known) != job_uid:
                return await self._create(resource, job_uid, manifest)
            return await self._update(resource, manifest, known)
        except ApiError as error:
            return _refused(resource, manifest, error)

    async def _create(self, resource: Resource, job_uid: str, manifest: Manifest) -> ApplyFailure | bool:
        try:
            return self._written(resource, manifest, await self._api.create(resource, self._signed(manifest)))
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
        namespace, name = name_of(manifest)
        try:
            live = await self._api.get(resource, namespace, name)
        except ApiError as error:
            if error.status == 404:  # what was in the way has just gone, and nobody need tell us
                raise StaleError(error.message) from error
            raise
        if controller_uid(live) != job_uid:
            return ApplyFailure(
                FailureReason.NAME_CONFLICT,
                f"{resource.kind} {name} exists in namespace {namespace} and is not this job's",
            )
        self._cache.store(resource, live)
        return await self._update(resource, manifest, live)

    async def _update(self, resource: Resource, manifest: Manifest, live: Manifest) -> bool:
        if live["metadata"].get("deletionTimestamp"):
            return False  # the event of its end brings the next pass, which creates it anew
        drifted = not _differs(resource, manifest, live)
        if drifted and not self._may_correct(resource, manifest, live):
            return False
        answer = await self._api.replace(resource, _overlaid(resource, manifest, live))
        if drifted:
            self._corrections.take((resource.kind, name_of(manifest)))
            self._count_correction(resource, manifest, "corrected")
        return self._written(resource, manifest, answer)

    def _signed(self, manifest: Manifest) -> Manifest:
        """With the release that makes it, for its neighbours. No part of the manifest: another may take it over."""
        if not self._release:
            return manifest
        metadata = manifest["metadata"]
        annotations = {**(metadata.get("annotations") or {}), names.ANNOTATION_OPERATOR: self._release}
        return {**manifest, "metadata": {**metadata, "annotations": annotations}}

    def _written(self, resource: Resource, manifest: Manifest, answer: Manifest) -> bool:
        """Remembers the answer. Whether admission made something else of the manifest."""
        self._cache.store(resource, answer)
        if resource is not DEPLOYMENT or not has_drifted(answer, manifest):
            return False
        logger.info("deployment=%s/%s admission=changed_it", *name_of(manifest))
        self._cache.admit(answer, manifest)
        return True

    def _may_correct(self, resource: Resource, manifest: Manifest, live: Manifest) -> bool:
        """Whether somebody changed our fields, and we have not put them right time and again."""
        if resource not in SERVED or not has_drifted(live, manifest):
            return False
        if self._corrections.has((resource.kind, name_of(manifest))):
            return True
        self._count_correction(resource, manifest, "fought_over")
        return False

    def _count_correction(self, resource: Resource, manifest: Manifest, result: str) -> None:
        logger.warning("%s=%s/%s drift=%s", resource.kind.lower(), *name_of(manifest), result)
        CORRECTIONS.labels(resource.plural, result).inc()

    async def _delete(self, ref: ObjectRef) -> None:
        resource = resource_of({"kind": ref.kind})
        known = self._cache.get(resource, (ref.namespace, ref.name))
        if known is None or known["metadata"].get("deletionTimestamp"):
            return
        uid = ref.uid or known["metadata"]["uid"]
        try:
            answer = await self._api.delete(resource, ref.namespace, ref.name, uid)
        except ApiError as error:
            if error.status not in (404, 409):  # gone, or another one of that name: what was meant is gone
                raise
            return
        if answer.get("kind") == resource.kind:
            self._cache.store(resource, answer)

    async def _event(self, job: Manifest, event: Event, place: int) -> None:
        if not self._events.take(job["metadata"]["uid"]):
            logger.warning("job=%s/%s event=%s dropped=too_many", *name_of(job), event.reason)
            return
        try:
            await self._api.create(EVENT, event_manifest(job, event, self._instance, place))
        except ApiError as error:
            # 403: the namespace is ending. Nobody would post it again: it is no reason to leave the pass unfinished.
            if error.reason != "AlreadyExists" and error.status not in (403, 404):
                logger.warning("job=%s/%s event=%s lost=%r", *name_of(job), event.reason, str(error))


def _first_failure(results: Sequence[ApplyFailure | BaseException | bool]) -> ApplyFailure | None:
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return next((result for result in results if isinstance(result, ApplyFailure)), None)


def _differs(resource: Resource, manifest: Manifest, live: Manifest) -> bool:
    """By the hash of the manifest that made it: what the API server added is no difference, and is not kept."""
    wanted, found = (names.annotation(each, names.ANNOTATION_SPEC_HASH) for each in (manifest, live))
    if wanted is not None or found is not None:
        return bool(wanted != found)
    return resource is not CONFIG_MAP  # a run's ConfigMap is immutable


def _overlaid(resource: Resource, manifest: Manifest, live: Manifest) -> Manifest:
    """Our manifest as a replacement: labels and annotations of others stay, everything else is ours."""
    metadata = {**live["metadata"], **manifest["metadata"]}
    metadata.pop("managedFields", None)
    for part in ("labels", "annotations"):
        both = {**(live["metadata"].get(part) or {}), **(manifest["metadata"].get(part) or {})}
        if both:
            metadata[part] = both
    body = {**manifest, "metadata": metadata}
    if resource is DEPLOYMENT and is_autoscaled(live):
        body["spec"] = {**manifest["spec"], "replicas": live["spec"].get("replicas")}
    if resource is SERVICE:  # what the API server allotted may not be taken away
        allotted = {key: live["spec"][key] for key in SERVICE_ALLOCATED if key in live["spec"]}
        body["spec"] = {**allotted, **manifest["spec"]}
    return body


def _refused(resource: Resource, manifest: Manifest, error: ApiError) -> ApplyFailure:
    """What the user can do something about; raises what only needs another attempt."""
    if error.transient or error.status == 409:
        raise error
    if "NamespaceTerminating" in error.message or "being terminated" in error.message or error.status == 404:
        raise GoneError(error.message) from error
    reason = FailureReason.SYSTEM_FAULT
    if error.status == 403 and "exceeded quota" in error.message:
        reason = FailureReason.QUOTA_EXCEEDED
    elif error.status in (400, 422):
        reason = FailureReason.SPEC_INVALID
    return ApplyFailure(reason, f"{resource.kind} {manifest['metadata']['name']}: {error.message}"[:1000])


def _note(message: str) -> str:
    """As much of it as an Event may have, with an ellipsis where something is missing."""
    text, more = message.encode(errors="replace"), "…"
    if len(text) <= NOTE_BYTES:
        return text.decode()
    return text[: NOTE_BYTES - len(more.encode())].decode(errors="ignore") + more


def event_manifest(job: Manifest, event: Event, instance: str, place: int = 0) -> Manifest:
    """The Event object; `place` is its own among those of one change. The job's name cut to 200 characters, 20 digits
    of the version, 2 of the place and 16 of the content's hash fit the limit of 253."""
    metadata = job["metadata"]
    content = "\n".join((metadata["uid"], metadata["resourceVersion"], event.type, event.reason, event.message))
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    # Versions only grow, and have at most 20 digits.
    name = f"{metadata['name'][:200].rstrip('.-')}.{metadata['resourceVersion']:0>20}.{place:02}.{digest}"
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"namespace": metadata["namespace"], "name": name},
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"{GROUP}/operator",
        "reportingInstance": (instance or FIELD_MANAGER)[:128],
        "action": "Reconcile",
        "type": event.type,
        "reason": event.reason[:128],
        "note": _note(event.message),
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
    }
