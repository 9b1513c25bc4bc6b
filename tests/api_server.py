"""The simulated cluster behind the verbs of an API server: what the control plane's own client can be put before.

Faithful where the control plane relies on it: names are taken once (409 AlreadyExists), writes against an older version
are refused (409 Conflict), a status that is applied anew is as it was (no new version), Jobs and ConfigMaps are
immutable, a deletion in the foreground ends when the pods are gone, and every change is told to the watches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from finetune_api import API_VERSION, KIND
from finetune_api.job import FineTuneJob
from finetune_api.status import FineTuneJobStatus
from finetune_operator.control.api_client import ApiError
from finetune_operator.control.resources import EVENT, FINE_TUNE_JOB, POD, WATCHED, Resource, controller_uid
from finetune_operator.plan import Manifest, ObjectRef
from tests.simulator import Answer, Cluster, RefusedError, succeed

Key = tuple[str, str]  # kind, name; all in one namespace
Watcher = Callable[[Resource, str, Manifest], None]
NOTE_BYTES = 1024  # it says characters and counts bytes
BY_PLURAL = {each.plural: each for each in WATCHED if each.fields == ""} | {EVENT.plural: EVENT}


class ApiServer(Cluster):
    """The cluster of one job. `handle` is one request, `publish` tells the watches what has changed."""

    def __init__(self, job: FineTuneJob, answer: Answer = succeed) -> None:
        super().__init__(job, answer=answer)
        self.told: dict[str, Manifest] = {}  # Events, by name
        self.writes: list[str] = []  # those that changed something, as "VERB plural/name"
        self.started: list[str] = []  # pods that ever were, by the name of their Job
        self._watchers: list[Watcher] = []
        self._known: dict[Key, Manifest] = {}
        self._version = 100
        self.publish()

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Tells of every change from now on, until the answer is called."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def publish(self) -> None:
        """Gives what has changed a version, and tells of it."""
        live = self._live()
        for key, body in live.items():
            known = self._known.get(key)
            if known is not None and known["metadata"]["uid"] != body["metadata"]["uid"]:
                self._forget(key)
                known = None
            if known is None or _content(known) != _content(body):
                self._known[key] = self._versioned(body)
                self._tell("ADDED" if known is None else "MODIFIED", key)
        for key in [key for key in self._known if key not in live]:
            self._forget(key)

    def start_pod(self, job: Manifest, index: str = "") -> Manifest:
        pod = super().start_pod(job, index)
        metadata, owner = pod["metadata"], job["metadata"]
        metadata |= {"uid": f"uid-of-{metadata['name']}", "namespace": owner["namespace"]}
        kind = job["kind"] if job["kind"] == "Job" else "ReplicaSet"
        metadata["ownerReferences"] = [{"kind": kind, "name": owner["name"], "uid": owner["uid"], "controller": True}]
        if kind == "Job":  # servers may begin anew
            self.started.append(owner["name"])
        return pod

    def handle(self, method: str, url: str, body: Manifest | None) -> Manifest:
        """The answer to a request. Raises ApiError."""
        address = urlsplit(url)
        _, _, place = address.path.partition("/namespaces/team-a/")
        plural, _, rest = place.partition("/")
        name, _, subresource = rest.partition("/")
        resource = BY_PLURAL.get(plural)
        if resource is None:
            raise ApiError(404, "NotFound", address.path)
        if method == "GET" and not name:
            return self._list(resource, parse_qs(address.query))
        answer = self._change(method, resource, name, subresource, body or {})
        return copy.deepcopy(answer)

    def _change(self, method: str, resource: Resource, name: str, subresource: str, body: Manifest) -> Manifest:
        key = (resource.kind, name or body.get("metadata", {}).get("name", ""))
        before = self._version
        if method == "POST":
            self._create(resource, key, body)
        elif key not in self._known:
            raise ApiError(404, "NotFound", f"{resource.plural} {name!r} not found")
        elif method == "PUT" and subresource == "status":
            self._replace_status(key, body)
        elif method == "PUT":
            self._replace(key, body)
        elif method == "DELETE":
            self._delete(key, body)
        self.publish()
        if method != "GET" and (self._version > before or resource is EVENT):
            self.writes.append(f"{method} {resource.plural}/{key[1]}")
        return self.told[key[1]] if resource is EVENT else self._known.get(key, {})

    def _create(self, resource: Resource, key: Key, body: Manifest) -> None:
        if key in self._known or key[1] in self.told:
            raise ApiError(409, "AlreadyExists", f"{resource.plural} {key[1]!r} already exists")
        if resource is EVENT:
            if len(body["note"].encode()) > NOTE_BYTES:
                raise ApiError(422, "Invalid", "message: can have at most 1024 characters")
            self.told[key[1]] = body
            return
        self.apply(body)

    def _replace(self, key: Key, body: Manifest) -> None:
        self._check(key, body["metadata"])
        sent = {**body, "metadata": {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}}
        try:
            self.apply(sent)
        except RefusedError as error:
            raise ApiError(422, "Invalid", str(error)) from error

    def _replace_status(self, key: Key, body: Manifest) -> None:
        self._check(key, body["metadata"])
        self.write_status(FineTuneJobStatus.model_validate(body["status"]))

    def _delete(self, key: Key, body: Manifest) -> None:
        self._check(key, body.get("preconditions", {}))
        self.delete(ObjectRef("", key[0], "team-a", key[1]))

    def _check(self, key: Key, wanted: dict[str, Any]) -> None:
        found = self._known[key]["metadata"]
        for part in ("uid", "resourceVersion"):
            if wanted.get(part, found[part]) != found[part]:
                raise ApiError(409, "Conflict", f"{part} of {key[1]} is {found[part]}, not {wanted[part]}")

    def _list(self, resource: Resource, query: dict[str, list[str]]) -> Manifest:
        wanted = dict(pair.split("=") for each in query.get("labelSelector", []) for pair in each.split(","))
        items = [
            body for body in self.listed(resource) if wanted.items() <= (body["metadata"].get("labels") or {}).items()
        ]
        return {"metadata": {"resourceVersion": str(self._version)}, "items": items}

    def listed(self, resource: Resource) -> list[Manifest]:
        """What there is of a kind."""
        return [copy.deepcopy(body) for (kind, _), body in self._known.items() if kind == resource.kind]

    def _live(self) -> dict[Key, Manifest]:
        wire = self.job.to_wire()
        job = {**wire, "apiVersion": API_VERSION, "kind": KIND}
        return {
            (KIND, self.job.metadata.name): job,
            **self.objects,
            **{(POD.kind, pod["metadata"]["name"]): pod for pod in self.pods},
        }

    def _versioned(self, body: Manifest) -> Manifest:
        self._version += 1
        stored: Manifest = copy.deepcopy(body)
        stored["metadata"]["resourceVersion"] = str(self._version)
        return stored

    def _forget(self, key: Key) -> None:
        self._known[key] = self._versioned(self._known[key])
        self._tell("DELETED", key)
        del self._known[key]

    def _tell(self, kind: str, key: Key) -> None:
        resource = FINE_TUNE_JOB if key[0] == KIND else next(each for each in WATCHED if each.kind == key[0])
        for watcher in list(self._watchers):
            watcher(resource, kind, copy.deepcopy(self._known[key]))

    def orphans(self) -> list[str]:
        """Children whose owner is not there."""
        uids = {body["metadata"]["uid"] for body in self._live().values()}
        return sorted(
            f"{kind}/{name}"
            for (kind, name), body in self._live().items()
            if kind != KIND and controller_uid(body) not in uids
        )


def _content(body: Manifest) -> Manifest:
    return {**body, "metadata": {**body["metadata"], "resourceVersion": ""}}
