"""Executes a Plan on one machine: Jobs and Deployments become processes, everything else a value that is kept."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.conditions import ExitCode, Stage
from finetune_api.job import FineTuneJob
from finetune_operator import names
from finetune_operator.local import kubelet, pods, processes
from finetune_operator.local.children import Children
from finetune_operator.local.store import Store, timestamp
from finetune_operator.plan import Manifest, ObjectRef, Observed, Plan, ProgressReport
from finetune_operator.times import parse_time, stamp

TERMINATION_LOG = "termination-log"
LOG_TAIL = 2048  # bytes of the log that stand in for a summary (FallbackToLogsOnError)
STRAY_SECONDS = 60.0  # how long a stage of a killed parent may take to save its checkpoint


@dataclass(slots=True)
class Backend:
    """The children of one job. Its lock is held by whoever has one of these."""

    store: Store
    namespace: str
    name: str
    config_maps: Mapping[str, Mapping[str, str | bytes]] = field(default_factory=dict)
    port: int | None = None
    children: Children = field(default_factory=Children)
    stopping: bool = False
    trains: bool = True  # False: only serves; a run that is not finished waits for `finetune run`
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def open(cls, store: Store, job: FineTuneJob, config_maps: Mapping[str, Mapping[str, str | bytes]]) -> Backend:
        """The children as they were left. What still runs of a killed parent is ended first, with its checkpoint."""
        meta = job.metadata
        backend = cls(store, meta.namespace, meta.name, config_maps)
        backend.children = Children.load(store.children_path(meta.namespace, meta.name))
        backend._end_strays()
        return backend

    def observe(self, progress: ProgressReport | None) -> Observed:
        """Take note of processes that have ended, and of the server's readiness; then what there is."""
        for pod in list(self.children.pods):
            process = self._processes.get(pod["metadata"]["name"])
            code = process.poll() if process else None
            if code is not None:
                self._finish(pod, code)
        for name, job in self.children.jobs.items():
            self.children.jobs[name] = self._judged(job)
        self._probe()
        return self.children.observed(progress)

    def execute(self, plan: Plan) -> None:
        """Apply and delete; then start what shall run and does not."""
        for manifest in plan.apply:
            if self.trains or manifest["kind"] != "Job":
                self._apply(manifest)
        for reference in plan.delete:
            self._delete(reference)
        if not self.stopping:
            for job in self.children.jobs.values() if self.trains else ():
                self._start_if_needed(job)
            for deployment in self.children.deployments.values():
                self._start_if_needed(deployment)
        self.children.save(self.store.children_path(self.namespace, self.name))

    def running(self) -> dict[str, subprocess.Popen[bytes]]:
        """Processes by pod name."""
        return self._processes

    def wait(self, seconds: float) -> None:
        """Until a process ends, at most so long."""
        process = next(iter(self._processes.values()), None)
        try:
            if process is not None:
                process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def ask_to_stop(self) -> None:
        """SIGTERM to all; a training saves its checkpoint. Nothing is started any more."""
        self.stopping = True
        for process in self._processes.values():
            processes.send(process, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all and what they started."""
        self.stopping = True
        for process in self._processes.values():
            processes.send(process, signal.SIGKILL)

    def close(self) -> None:
        """End what still runs, and write down how."""
        self.stopping = True
        for pod in list(self.children.pods):
            process = self._processes.get(pod["metadata"]["name"])
            if process is not None:
                self._finish(pod, processes.end(process, pod["spec"]["terminationGracePeriodSeconds"]))
        self.children.save(self.store.children_path(self.namespace, self.name))

    def retry(self, run: int) -> None:
        """Forget Jobs of the run that failed, so that they are made anew."""
        for name, job in list(self.children.jobs.items()):
            conditions = (job.get("status") or {}).get("conditions") or ()
            if names.label(job, names.LABEL_RUN) == str(run) and any(c["type"] == "Failed" for c in conditions):
                self._delete(ObjectRef("batch/v1", "Job", self.namespace, name))

    # Objects

    def _apply(self, manifest: Manifest) -> None:
        shelf, name = self.children.shelf(manifest["kind"]), manifest["metadata"]["name"]
        old = shelf.get(name)
        new = kubelet.created(manifest, str(uuid.uuid4()), timestamp())
        if old is not None:
            new["metadata"] |= {"uid": old["metadata"]["uid"], "generation": old["metadata"]["generation"] + 1}
            if old["kind"] == "Deployment":
                self._remove_pods(old)  # one machine: the old server makes room before the new one loads
        shelf[name] = new

    def _delete(self, reference: ObjectRef) -> None:
        manifest = self.children.shelf(reference.kind).pop(reference.name, None)
        if manifest is not None:
            self._remove_pods(manifest)

    def _remove_pods(self, owner: Manifest) -> None:
        for pod in self.children.pods_of(owner):
            process = self._processes.pop(pod["metadata"]["name"], None)
            if process is not None:
                processes.end(process, pod["spec"]["terminationGracePeriodSeconds"])
            self.children.pods.remove(pod)
            shutil.rmtree(self._folder(pod), ignore_errors=True)

    # Pods

    def _start_if_needed(self, owner: Manifest) -> None:
        mine = self.children.pods_of(owner)
        going = [pod for pod in mine if kubelet.exit_code_of(pod) is None]
        serves = owner["kind"] == "Deployment"
        if going or kubelet.is_finished(owner) or (serves and (mine or not owner["spec"]["replicas"])):
            return  # a server that ended by itself is not started again: whoever looks at it shall know
        first = names.number(names.label(owner, names.LABEL_ATTEMPT)) or 1
        pod = kubelet.new_pod(owner, first + len(mine), str(uuid.uuid4()), timestamp())
        places = pods.Places(self.store.artifacts, self.store.claims, self._data())
        root = self._folder(pod) / "root"
        plan = pods.launch(pod["spec"], root, places, port=self.port)
        shutil.rmtree(self._folder(pod), ignore_errors=True)
        self.store.artifacts.mkdir(parents=True, exist_ok=True)
        pods.prepare_root(root, plan)
        words = (*plan.arguments, "--termination-log", str(self._folder(pod) / TERMINATION_LOG))
        process = processes.spawn(words, pods.environment(plan, os.environ), self.log_path(pod))
        self._processes[pod["metadata"]["name"]] = process
        self.children.pods.append(kubelet.running(pod, process.pid, timestamp()))

    def _data(self) -> dict[str, Mapping[str, str | bytes]]:
        own = {name: m.get("data") or {} for name, m in self.children.config_maps.items()}
        return {**self.config_maps, **own}

    def _finish(self, pod: Manifest, exit_code: int, when: str | None = None) -> None:
        self._processes.pop(pod["metadata"]["name"], None)
        if self.stopping and exit_code < 0:
            exit_code = (
                ExitCode.INTERRUPTED
            )  # it was asked to stop before it could listen, or killed at the user's wish
        self.children.replace(kubelet.ended(pod, exit_code, self._last_words(pod, exit_code), when or timestamp()))
        shutil.rmtree(self._folder(pod), ignore_errors=True)

    def _last_words(self, pod: Manifest, exit_code: int) -> str:
        try:
            return (self._folder(pod) / TERMINATION_LOG).read_text(encoding="utf-8", errors="replace")
        except OSError:
            pass
        try:
            return self.log_path(pod).read_bytes()[-LOG_TAIL:].decode(errors="replace") if exit_code else ""
        except OSError:
            return ""

    def _last_sign(self, pod: Manifest) -> str | None:
        """When a process that is gone wrote last. It may be days ago, and did not hold its GPU since."""
        files = [path for path in (self.log_path(pod), self._folder(pod) / TERMINATION_LOG) if path.exists()]
        written = max((path.stat().st_mtime for path in files), default=None)
        return None if written is None else stamp(datetime.fromtimestamp(written, UTC))

    def _judged(self, job: Manifest) -> Manifest:
        mine = self.children.pods_of(job)
        limit = job["spec"].get("activeDeadlineSeconds")
        if limit and not kubelet.is_finished(job) and not self.stopping:
            started = parse_time(job["metadata"]["creationTimestamp"], datetime.now(UTC))
            if (datetime.now(UTC) - started).total_seconds() > limit:
                for pod in mine:
                    process = self._processes.get(pod["metadata"]["name"])
                    if process is not None:
                        self._finish(pod, processes.end(process, pod["spec"]["terminationGracePeriodSeconds"]))
                return kubelet.past_deadline(job, timestamp())
        return kubelet.with_status(job, mine, timestamp())

    def _probe(self) -> None:
        for name, deployment in self.children.deployments.items():
            mine = self.children.pods_of(deployment)
            alive = [pod for pod in mine if kubelet.exit_code_of(pod) is None]
            ready = bool(alive) and self.port is not None and _answers(self.port, deployment)
            self.children.deployments[name] = kubelet.deployment_status(deployment, ready=ready)
            for pod in alive:
                pid = int(pod["metadata"]["annotations"][kubelet.ANNOTATION_PID])
                started = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
                self.children.replace(kubelet.running(pod, pid, started, ready=ready))

    def _end_strays(self) -> None:
        for pod in list(self.children.pods):
            if kubelet.exit_code_of(pod) is not None:
                continue
            pid = (pod["metadata"].get("annotations") or {}).get(kubelet.ANNOTATION_PID)
            alive = pid and processes.end_stray(int(pid), str(self._folder(pod)), STRAY_SECONDS)
            when = None if alive else self._last_sign(pod)
            self._finish(pod, kubelet.presumed_exit_code(self._last_words(pod, 0)), when)
        for name, deployment in list(self.children.deployments.items()):
            self._remove_pods(deployment)
            del self.children.deployments[name]

    def _folder(self, pod: Manifest) -> Path:
        return self.store.home / "pods" / self.namespace / str(pod["metadata"]["name"])

    def log_path(self, pod: Manifest) -> Path:
        """logs/NAMESPACE/NAME/r1-train-attempt1.log"""
        label = {key: names.label(pod, f"{key}") or "" for key in (names.LABEL_RUN, names.LABEL_STAGE)}
        attempt = names.label(pod, names.LABEL_ATTEMPT)
        stage = label[names.LABEL_STAGE].lower()
        return self.store.logs(self.namespace, self.name) / f"r{label[names.LABEL_RUN]}-{stage}-attempt{attempt}.log"


def _answers(port: int, deployment: Manifest) -> bool:
    """What the readiness probe would find."""
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]
    try:
        with urllib.request.urlopen(f"http://{pods.LOCALHOST}:{port}{probe['path']}", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def server_ended(children: Children) -> str | None:
    """The last words of a server that ended by itself, or None."""
    for pod in children.pods:
        if names.label(pod, names.LABEL_STAGE) == Stage.SERVE.value and kubelet.exit_code_of(pod) is not None:
            return str(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
    return None
