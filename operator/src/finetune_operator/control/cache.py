"""What the watches have told. The only memory that decisions are made from.

Entries only move forward: an event that is older than what is known (our own write's answer may overtake
its event) is ignored, and an equal one is no news, so that our own writes cause no second pass. Nor is a change of
what nobody reads, such as a Job's count of active pods.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from sys import intern
from typing import Any, TypeVar, cast

from finetune_operator import names
from finetune_operator.builders.run_config_map import RUN_JSON
from finetune_operator.control.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    FINE_TUNE_JOB,
    JOB,
    OF_JOBS,
    POD,
    POD_REFUSAL,
    WORKLOAD,
    Resource,
    controller_uid,
)
from finetune_operator.diagnose.facts import charged_for, is_rolling
from finetune_operator.drift import AUTOSCALERS
from finetune_operator.plan import Manifest

K = TypeVar("K")
V = TypeVar("V")
Name = tuple[str, str]  # namespace, name
UNREAD = {JOB.kind: ("spec",), CONFIG_MAP.kind: ("binaryData",)}
JOB_STATUS_PARTS = ("conditions", "completionTime", "failed")
REFUSAL_PARTS = ("kind", "metadata", "involvedObject", "message", "lastTimestamp", "eventTime", "series")
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"  # a copy of the whole spec; nothing reads it


def name_of(body: Manifest) -> Name:
    metadata = body["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _version(body: Manifest) -> int:
    text = str(body["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0


def _unversioned(body: Manifest) -> Manifest:
    return {**body, "metadata": {**body["metadata"], "resourceVersion": ""}}


def slim(body: Manifest) -> Manifest:
    """The object without what nobody reads: that is nine tenths of a Job and of a pod.

    Of what the operator made it reads names, labels, annotations and status; what the rest should be it computes.
    A server's spec is kept to see what others change in it.
    """
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    if body.get("kind") == DEPLOYMENT.kind and (scaled := _scaled_by(body)):
        metadata["managedFields"] = scaled
    annotations = metadata.get("annotations")
    if annotations and LAST_APPLIED in annotations:
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != LAST_APPLIED}
    kept = {**body, "metadata": metadata}
    if body.get("kind") in UNREAD:
        for part in UNREAD[body["kind"]]:
            kept.pop(part, None)
    if body.get("kind") == CONFIG_MAP.kind:  # the snapshot of a run, by which an older run is served again
        kept["data"] = {key: text for key, text in (body.get("data") or {}).items() if key == RUN_JSON}
    if body.get("kind") == JOB.kind and (status := body.get("status")):
        # That its pods may begin is asked only of a Job that a queue holds back: without one it is no news.
        read = (*JOB_STATUS_PARTS, "startTime") if names.label(body, names.LABEL_QUEUE) else JOB_STATUS_PARTS
        kept["status"] = {part: status[part] for part in read if part in status}
    if body.get("kind") == POD.kind:  # where it is, which claims and ConfigMaps it waits for, what it is charged for
        spec = body.get("spec") or {}
        where = {"nodeName": spec["nodeName"]} if spec.get("nodeName") else {}
        kept["spec"] = {"volumes": spec.get("volumes") or [], **where, **charged_for(spec)}
    if body.get("kind") == WORKLOAD.kind:
        kept["spec"] = {"active": (body.get("spec") or {}).get("active")}
        kept["status"] = {"conditions": (body.get("status") or {}).get("conditions") or []}
    if body.get("kind") == POD_REFUSAL.kind:
        kept = {key: kept[key] for key in REFUSAL_PARTS if key in kept}
    return cast(Manifest, shared_texts(kept))


def names_origin(body: Manifest) -> str | None:
    """The job that a stored FineTuneJob names as its base."""
    model = (body.get("spec") or {}).get("baseModel") or {}
    ref = model.get("fineTuneJob") if isinstance(model, dict) else None
    name = ref.get("name") if isinstance(ref, dict) else None
    return name if isinstance(name, str) else None


def _scaled_by(body: Manifest) -> list[dict[str, str]]:
    """The autoscaler that set the number of replicas, if one did."""
    entries = body["metadata"].get("managedFields") or ()
    return [
        {"manager": each["manager"], "subresource": "scale"}
        for each in entries
        if each.get("subresource") == "scale" and each.get("manager") in AUTOSCALERS
    ]


def _pack(spec: Any) -> bytes:
    """About 1 KB where a Deployment's spec is 15 KB of dictionaries, and one is kept for every job that serves."""
    return zlib.compress(json.dumps(spec, sort_keys=True).encode(), 1)


def shared_texts(value: Any) -> Any:
    """A copy in which equal texts are one string in the whole process, keys and values: every event brings its own
    otherwise, and what is a default or a condition's message here is one in a thousand other jobs."""
    if isinstance(value, dict):
        return {intern(key): shared_texts(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shared_texts(part) for part in value]
    return intern(value) if isinstance(value, str) else value


@dataclass
class Relist:
    """What happened while a list was under way: of those the watch may know more than the list."""

    touched: set[Name] = field(default_factory=set)


class Cache:
    """Objects by kind and name, children by the uid of their owner, pods by namespace and job label."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Name, Manifest]] = defaultdict(dict)
        self._by_owner: dict[str, set[tuple[str, Name]]] = defaultdict(set)
        self._by_label: dict[Name, set[Name]] = defaultdict(set)
        self._job_names: dict[str, Name] = {}  # uid of a FineTuneJob -> its name
        self._dependents: dict[Name, set[Name]] = defaultdict(set)  # a job -> those that go on from its model
        self._labelled: dict[Name, Name] = {}  # namespace, job label -> the FineTuneJob of that name
        self._specs: dict[Name, bytes] = {}  # of Deployments, packed
        # Where admission changes what we write: what it made of a spec, and that spec.
        self._admitted: dict[Name, tuple[bytes, bytes]] = {}
        self._rolling: set[Name] = set()  # Deployments whose servers are being replaced
        self._relists: dict[str, list[Relist]] = defaultdict(list)
        self.told: Counter[str] = Counter()  # plural -> events that its watch has told

    def name_of_job(self, uid: str) -> Name | None:
        """Namespace and name of the FineTuneJob with this uid."""
        return self._job_names.get(uid)

    def get(self, resource: Resource, name: Name) -> Manifest | None:
        body = self._objects[resource.kind].get(name)
        return body and self._whole(body)

    def names(self, resource: Resource) -> Collection[Name]:
        return list(self._objects[resource.kind])

    def objects(self, resource: Resource) -> Collection[Manifest]:
        return self._objects[resource.kind].values()

    def children(self, owner_uid: str) -> Iterator[Manifest]:
        """Everything whose controlling owner has this uid."""
        for kind, name in self._by_owner.get(owner_uid, ()):
            yield self._whole(self._objects[kind][name])

    def pods(self, namespace: str, label: str) -> Iterator[Manifest]:
        """The pods that carry this value of the job label."""
        for name in self._by_label.get((namespace, label), ()):
            yield self._objects[POD.kind][name]

    def dependents(self, name: Name) -> Collection[Name]:
        """The jobs that name this one in `baseModel.fineTuneJob`."""
        return list(self._dependents.get(name, ()))

    @property
    def rolling(self) -> Collection[Name]:
        """Deployments whose servers are being replaced."""
        return self._rolling

    def job_of(self, body: Manifest) -> Name | None:
        """The FineTuneJob that an object concerns: that of its owner, else the one whose name its label has.

        So a pod, whose owner is a Job, concerns it, and so does what a deleted FineTuneJob of the same name left.
        """
        if owner := self._job_names.get(controller_uid(body) or ""):
            return owner
        metadata = body["metadata"]
        if about := body.get("involvedObject"):
            job = self._objects[JOB.kind].get((metadata.get("namespace", ""), about.get("name", "")))
            return self.job_of(job) if job else None
        if body.get("kind") == WORKLOAD.kind:
            return self.owner_of(body)
        return self._labelled.get(
            (metadata.get("namespace", ""), (metadata.get("labels") or {}).get(names.LABEL_JOB, ""))
        )

    def owner_of(self, body: Manifest) -> Name | None:
        """The FineTuneJob whose own Job made the pod or Workload; never one that has the name of its former owner."""
        uid = controller_uid(body)
        for reference in body["metadata"].get("ownerReferences") or ():
            job = self._objects[JOB.kind].get((body["metadata"].get("namespace", ""), reference.get("name", "")))
            if reference.get("uid") == uid and job is not None and job["metadata"]["uid"] == uid:
                return self._job_names.get(controller_uid(job) or "")
        return None

    def store(self, resource: Resource, body: Manifest, *, from_watch: bool = True) -> bool:
        """Remembers an object; False when nothing new was learnt.

        Watches and answers to our own writes may come late, a list of an object that neither has told of meanwhile does
        not: an older version there is the truth of an API server whose etcd was restored from a backup.
        """
        name = name_of(body)
        if resource.kind in OF_JOBS and self.job_of(body) is None:
            return False  # about a Job of others; what comes before its Job comes again
        if from_watch:
            self._touch(resource, name)
        known = self._objects[resource.kind].get(name)
        if known is not None:
            same = known["metadata"].get("uid") == body["metadata"].get("uid")
            if same and _version(body) == _version(known):
                return False
            if from_watch and _version(body) < _version(known):
                return False
        return self._replace(resource, name, slim(body))

    def _replace(self, resource: Resource, name: Name, body: Manifest) -> bool:
        """Whether anything is otherwise than before, the version aside."""
        known, spec = self._objects[resource.kind].get(name), self._specs.get(name)
        if known is not None:
            self._forget(resource, name)
        self._remember(resource, name, body)
        return known is None or _unversioned(known) != _unversioned(body) or spec != self._specs.get(name)

    def admit(self, answer: Manifest, manifest: Manifest) -> None:
        """Admission changed the Deployment that we wrote: until somebody else does, it counts as what we wrote."""
        name = name_of(answer)
        made = (_pack(answer.get("spec")), _pack(manifest["spec"]))
        if self._specs.get(name) == made[0]:
            self._specs[name] = made[1]
            self._admitted[name] = made

    def remove(self, resource: Resource, body: Manifest) -> bool:
        """Forgets an object; False when another one of that name is there already."""
        name = name_of(body)
        self._touch(resource, name)
        known = self._objects[resource.kind].get(name)
        if known is None or known["metadata"].get("uid") != body["metadata"].get("uid"):
            return False
        self.drop(resource, name)
        return True

    def drop(self, resource: Resource, name: Name) -> None:
        """Forgets whatever has this name."""
        if name in self._objects[resource.kind]:
            self._forget(resource, name)
        if resource is DEPLOYMENT:
            self._admitted.pop(name, None)

    def begin_relist(self, resource: Resource) -> Relist:
        relist = Relist()
        self._relists[resource.kind].append(relist)
        return relist

    def end_relist(self, resource: Resource, relist: Relist) -> None:
        self._relists[resource.kind].remove(relist)

    def _touch(self, resource: Resource, name: Name) -> None:
        for relist in self._relists[resource.kind]:
            relist.touched.add(name)

    def _whole(self, body: Manifest) -> Manifest:
        """The object with its spec, where that is kept packed."""
        if body.get("kind") != DEPLOYMENT.kind:
            return body
        return {**body, "spec": json.loads(zlib.decompress(self._specs[name_of(body)]))}

    def _as_written(self, name: Name, spec: bytes) -> bytes:
        made, written = self._admitted.get(name, (b"", b""))
        if spec == made:
            return written
        self._admitted.pop(name, None)
        return spec

    def _remember(self, resource: Resource, name: Name, body: Manifest) -> None:
        self._objects[resource.kind][name] = body
        if resource is DEPLOYMENT:
            self._specs[name] = self._as_written(name, _pack(body.pop("spec", None)))
            (self._rolling.add if is_rolling(body) else self._rolling.discard)(name)
        if resource is FINE_TUNE_JOB:
            self._job_names[body["metadata"]["uid"]] = name
            if origin := names_origin(body):
                self._dependents[name[0], origin].add(name)
            self._labelled[name[0], names.cut(name[1])] = name
        label = (name[0], (body["metadata"].get("labels") or {}).get(names.LABEL_JOB, ""))
        if resource is POD:
            self._by_label[label].add(name)
        elif owner := controller_uid(body):
            self._by_owner[owner].add((resource.kind, name))

    def _forget(self, resource: Resource, name: Name) -> None:
        body = self._objects[resource.kind].pop(name)
        label = (name[0], (body["metadata"].get("labels") or {}).get(names.LABEL_JOB, ""))
        if resource is DEPLOYMENT:
            self._specs.pop(name, None)
            self._rolling.discard(name)
        if resource is FINE_TUNE_JOB:
            self._job_names.pop(body["metadata"]["uid"], None)
            if origin := names_origin(body):
                _discard(self._dependents, (name[0], origin), name)
            self._labelled.pop((name[0], names.cut(name[1])), None)
        if resource is POD:
            _discard(self._by_label, label, name)
        elif owner := controller_uid(body):
            _discard(self._by_owner, owner, (resource.kind, name))


def _discard(index: dict[K, set[V]], key: K, value: V) -> None:
    values = index.get(key)
    if values is not None:
        values.discard(value)
        if not values:
            del index[key]
