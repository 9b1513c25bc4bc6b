"""A cluster of a hundred lines: what Job controller, Deployment controller and kubelet do to the objects that
`decide` asks for, one move at a time, so that tests choose the order, the moment of a crash, and the fate of a pod.

It refuses what a real API server refuses (a change of an immutable Job or ConfigMap), so a plan that no cluster
would take fails here, too.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.job import FineTuneJob
from finetune_api.reports import Summary
from finetune_api.status import FineTuneJobStatus
from finetune_operator import names
from finetune_operator.control.cache import slim
from finetune_operator.decide import decide
from finetune_operator.diagnose.facts import MEMBER, member
from finetune_operator.local import kubelet
from finetune_operator.origin import origin
from finetune_operator.plan import Manifest, ObjectRef, Observed, Plan, PodRefusal, ProgressReport
from finetune_operator.settings import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = 600.0  # seconds; what is to be looked at later, an occasion or an export, is waited for by nobody
Answer = Callable[[Manifest], tuple[int, str]]
"""From a pod to its container's exit code and termination message."""

SPEC: dict[str, Any] = {
    "baseModel": {"source": "pvc://models/tiny-base"},
    "dataset": {"train": {"configMapRef": {"name": "travel-data", "key": "train.jsonl"}}},
    "compute": {"gpus": 0},
    "output": {"claimName": "models"},
}


def make_job(name: str = "travel", generation: int = 1, uid: str = "job-uid", **spec: Any) -> FineTuneJob:
    """A job with the smallest spec, and the given parts of the spec on top."""
    meta = {"name": name, "namespace": "team-a", "uid": uid, "generation": generation}
    return FineTuneJob.model_validate({"metadata": meta, "spec": {**copy.deepcopy(SPEC), **spec}})


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def scores(loss: float) -> dict[str, float]:
    return {"loss": loss, "perplexity": 2.0**loss, "tokenAccuracy": 0.5}


def good_summary(stage: str, run: int, *, tuned: float = 1.0, base: float = 2.0) -> str:
    """What a stage that went well leaves as termination message."""
    parts: dict[str, dict[str, Any]] = {
        "Prepare": {
            "dataset": {"trainExamples": 180, "validationExamples": 20, "trainTokens": 9000, "lossTokens": 4000},
            "basePath": "team-a/models/tiny-base@0123456789ab",
        },
        "Train": {
            "model": {
                "path": f"team-a/travel/runs/{run}/model",
                "basePath": "team-a/models/tiny-base@0123456789ab",
                "kind": "Adapter",
                "sha256": "ab" * 32,
            },
            "steps": 40,
            "trainLoss": 0.9,
            "checkpoint": {"step": 40, "time": stamp(START)},
        },
        "Evaluate": {"evaluation": {"examples": 20, "base": scores(base), "tuned": scores(tuned)}},
        "Judge": {
            "evaluation": {
                "examples": 20,
                "base": scores(base),
                "tuned": scores(tuned),
                "judge": {"asked": 8, "wins": 6, "ties": 1, "losses": 1, "share": 0.8125},
            }
        },
        "Package": {"package": {"exports": [{"name": "whole", "uri": "s3://b/x", "digest": "cd" * 32, "bytes": 9}]}},
    }
    return Summary.model_validate({"stage": stage, "ok": True, "run": run, **parts[stage]}).to_message()


def succeed(pod: Manifest) -> tuple[int, str]:
    labels = pod["metadata"]["labels"]
    return 0, good_summary(labels["finetune-operator.io/stage"], int(labels["finetune-operator.io/run"]))


class RefusedError(Exception):
    """What the API server would answer to an impossible write."""


class Cluster:
    """The objects, the clock, and the moves that are possible."""

    def __init__(self, job: FineTuneJob, settings: Settings | None = None, answer: Answer = succeed) -> None:
        self.job = job
        self.settings = settings or Settings()
        self.answer = answer
        self.now = START
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.pods: list[Manifest] = []
        self.former: list[Manifest] = []  # pods that a Job left which is gone
        self.refusals: dict[str, PodRefusal] = {}
        self.workloads: dict[str, Manifest] = {}  # Kueue's, by name of the Job
        self.progress: ProgressReport | None = None
        self.rolling = 0  # other jobs whose servers are being replaced
        self.watched_only = False  # whether what is known of pods may lag behind what is known of their Jobs
        self.never_ready: int | None = None  # the run whose servers never become ready
        self.train_seconds = 0.0  # so long a training takes, at least
        self.others: dict[str, FineTuneJob] = {}  # the namespace's other jobs, by name
        self.plans: list[Plan] = []
        self.created: list[str] = []
        self._ids = itertools.count(1)

    # The control plane's side

    def observed(self) -> Observed:
        """No more than the cache keeps: what decisions read beyond that, a cluster does not tell them."""

        def of(kind: str) -> dict[str, Manifest]:
            return {name: slim(manifest) for (k, name), manifest in self.objects.items() if k == kind}

        return Observed(
            jobs=of("Job"),
            pods=[slim(pod) for pod in self.pods],
            config_maps=of("ConfigMap"),
            deployments=of("Deployment"),
            services=of("Service"),
            progress=self.progress,
            origin=origin(self.job, self.others.get),
            dependents=tuple(self.others.values()),
            former_pods=[slim(pod) for pod in self.former],
            refusals=dict(self.refusals),
            workloads={name: slim(workload) for name, workload in self.workloads.items()},
            rolling=self.rolling,
            unread=frozenset(job["metadata"]["uid"] for job in of("Job").values() if self.watched_only),
        )

    def plan(self) -> Plan:
        return decide(self.job, self.observed(), self.now, self.settings)

    def execute(self, plan: Plan, writes: int | None = None) -> None:
        """All of the plan, or only its first writes, as when the operator dies in between."""
        steps: list[Callable[[], None]] = [lambda m=m: self.apply(m) for m in plan.apply]  # type: ignore[misc]
        steps.append(lambda: self.write_status(plan.status))
        steps += [lambda r=r: self.delete(r) for r in plan.delete]  # type: ignore[misc]
        for step in steps[: len(steps) if writes is None else writes]:
            step()
        if writes is None:
            self.plans.append(plan)

    def forget(self, *fields: str) -> Cluster:
        """The status as a version wrote it whose models did not tell these."""
        status = self.job.status.to_wire()
        for part in (status, status["run"], *status["runs"]):
            part["model"] = {key: value for key, value in part["model"].items() if key not in fields}
        self.write_status(FineTuneJobStatus.model_validate(status))
        return self

    def write_status(self, status: FineTuneJobStatus) -> None:
        """Through JSON and back, as the API server has it."""
        wire = FineTuneJobStatus.model_validate(status.to_wire())
        self.job = self.job.model_copy(update={"status": wire})

    def apply(self, manifest: Manifest) -> None:
        key = (manifest["kind"], manifest["metadata"]["name"])
        old = self.objects.get(key)
        new = copy.deepcopy(manifest)
        if old is None:
            new["metadata"] |= {"uid": f"uid-{next(self._ids)}", "creationTimestamp": stamp(self.now), "generation": 1}
            self.created.append("/".join(key))
            self.objects[key] = new
            return
        if manifest["kind"] in ("Job", "ConfigMap"):
            if {**old, "metadata": 0, "status": 0} != {**new, "metadata": 0, "status": 0}:
                raise RefusedError(f"{key} is immutable")
            return
        changed = old.get("spec") != new.get("spec")
        kept = {field: old["metadata"][field] for field in ("uid", "creationTimestamp")}
        new["metadata"] |= {**kept, "generation": old["metadata"]["generation"] + changed}
        self.objects[key] = {**new, "status": old.get("status", {})}

    def delete(self, ref: ObjectRef) -> None:
        manifest = self.objects.get((ref.kind, ref.name))
        if manifest and ref.uid in ("", manifest["metadata"]["uid"]):
            manifest["metadata"].setdefault("deletionTimestamp", stamp(self.now))

    # The cluster's side

    def moves(self) -> list[Callable[[], None]]:
        """Everything that could happen next."""
        result: list[Callable[[], None]] = []
        for (kind, name), manifest in self.objects.items():
            if manifest["metadata"].get("deletionTimestamp"):
                result.append(lambda k=kind, n=name: self.vanish(k, n))  # type: ignore[misc]
            elif kind == "Job":
                result += self._job_moves(manifest)
            elif kind == "Deployment" and self._deployment_status(manifest) != manifest.get("status"):
                result.append(lambda m=manifest: self._roll(m))  # type: ignore[misc]
        return result

    def vanish(self, kind: str, name: str) -> None:
        manifest = self.objects.pop((kind, name))
        uid = manifest["metadata"]["uid"]
        self.pods = [p for p in self.pods if p["metadata"]["ownerReferences"][0]["uid"] != uid]

    def _job_moves(self, job: Manifest) -> list[Callable[[], None]]:
        conditions = job.get("status", {}).get("conditions") or ()
        if any(condition["type"] != "Suspended" for condition in conditions):
            return []
        if job["spec"].get("suspend"):
            return []
        pods = self.pods_of(job)
        live = [p for p in pods if p["status"]["phase"] in ("Pending", "Running")]
        there = {member(pod) for pod in pods}
        missing = [index for index in indexes(job) if index not in there]
        if missing:
            return [lambda: self.start_pod(job, missing[0])]
        if live:
            if self._trains_on(live[0]):
                return []
            peers = job["spec"]["template"]["spec"].get("subdomain")  # by which the pods of a gang find each other
            return [lambda: self.step_pod(live[0])] if not peers or ("Service", peers) in self.objects else []
        return [lambda: self.judge_job(job)]

    def _trains_on(self, pod: Manifest) -> bool:
        begun = pod["status"].get("startTime")
        trains = begun is not None and names.label(pod, names.LABEL_STAGE) == "Train"
        return trains and self.now < datetime.fromisoformat(begun) + timedelta(seconds=self.train_seconds)

    def suspend(self, job: Manifest, *, suspended: bool, **spec: Any) -> None:
        """What a queue does to a Job, in one update, and the Job controller after it. Pods of a suspended one go."""
        job["spec"]["suspend"] = suspended
        job["spec"]["template"]["spec"] |= spec
        status = job.setdefault("status", {})
        status.pop("startTime", None)
        status |= {} if suspended else {"startTime": stamp(self.now)}
        self._conclude(job, "Suspended", "JobSuspended" if suspended else "JobResumed", "", str(suspended))
        if suspended:
            self.pods = [pod for pod in self.pods if pod not in self.pods_of(job)]

    def queue_says(self, job: Manifest, message: str, reason: str = "Pending", **spec: Any) -> None:
        """What Kueue writes into the Workload of a Job that waits."""
        condition = {"type": "QuotaReserved", "status": "False", "reason": reason, "message": message}
        name = job["metadata"]["name"]
        meta = {"name": f"job-{name}-abcde", "namespace": "team-a"}
        self.workloads[name] = {
            "kind": "Workload",
            "metadata": meta,
            "spec": {"active": True, **spec},
            "status": {"conditions": [condition]},
        }

    def pods_of(self, job: Manifest) -> list[Manifest]:
        uid = job["metadata"]["uid"]
        return [p for p in self.pods if p["metadata"]["ownerReferences"][0]["uid"] == uid]

    def start_pod(self, job: Manifest, index: str = "") -> Manifest:
        template = job["spec"]["template"]
        meta = {
            "name": f"{job['metadata']['name']}-{next(self._ids)}",
            "labels": {**template["metadata"]["labels"], **({MEMBER: index} if index else {})},
            "creationTimestamp": stamp(self.now),
            "ownerReferences": [{"uid": job["metadata"]["uid"], "controller": True}],
        }
        pod: Manifest = {"kind": "Pod", "metadata": meta, "spec": template["spec"], "status": {"phase": "Pending"}}
        self.pods.append(pod)
        if job["kind"] == "Job":
            job.setdefault("status", {})["active"] = 1
        return pod

    def step_pod(self, pod: Manifest) -> None:
        if pod["status"]["phase"] == "Pending":
            pod["status"]["startTime"] = stamp(self.now)
            set_state(pod, "Running", {"running": {"startedAt": stamp(self.now)}})
            return
        code, message = self.answer(pod)
        ended = {"exitCode": code, "message": message, "finishedAt": stamp(self.now)}
        ended["reason"] = "Completed" if code == 0 else "OOMKilled" if code == 137 else "Error"
        set_state(pod, "Failed" if code else "Succeeded", {"terminated": ended})

    def judge_job(self, job: Manifest) -> None:
        """The Job controller: retry, give up, or done."""
        status = job.setdefault("status", {})
        latest = {member(pod): pod for pod in self.pods_of(job)}
        codes = {index: _exit_code(pod) for index, pod in latest.items()}
        rules = job["spec"]["podFailurePolicy"]["rules"]
        verdicts = {index: kubelet.action(rules, code) for index, code in codes.items() if code}
        if not verdicts:
            status |= {"succeeded": 1, "active": 0, "completionTime": stamp(self.now)}
            self._conclude(job, "Complete", "CompletionsReached", "")
            return
        if "FailJob" in verdicts.values():
            status |= {"failed": 1, "active": 0}
            code = next(codes[index] for index, verdict in verdicts.items() if verdict == "FailJob")
            text = f"Container main for pod x failed with exit code {code} matching FailJob rule at index 0"
            self._conclude(job, "Failed", "PodFailurePolicy", text)
            return
        counted = [index for index, verdict in verdicts.items() if verdict != "Ignore"]
        status["failed"] = status.get("failed", 0) + len(counted)
        if "backoffLimitPerIndex" in job["spec"]:
            falls = Counter(
                member(pod) for pod in self.pods_of(job) if kubelet.action(rules, _exit_code(pod)) == "Count"
            )
            if any(falls[index] > job["spec"]["backoffLimitPerIndex"] for index in counted):
                text = "Job has exceeded the specified maximal number of failed indexes"
                self._conclude(job, "Failed", "MaxFailedIndexesExceeded", text)
                return
        elif status["failed"] > job["spec"]["backoffLimit"]:
            self._conclude(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
            return
        for index in verdicts:
            self.start_pod(job, index)

    def _conclude(self, job: Manifest, kind: str, reason: str, message: str, status: str = "True") -> None:
        entry = {"type": kind, "status": status, "reason": reason, "message": message}
        job["status"]["conditions"] = [{**entry, "lastTransitionTime": stamp(self.now)}]

    def _deployment_status(self, deployment: Manifest) -> dict[str, Any]:
        replicas = deployment["spec"]["replicas"]
        done = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": replicas,
            "updatedReplicas": replicas,
            "readyReplicas": replicas,
            "availableReplicas": replicas,
        }
        if self.never_ready is None or names.run_of(deployment) != self.never_ready:
            return done
        return {**done, "replicas": replicas + 1, "updatedReplicas": 1, "unavailableReplicas": 1}

    def _roll(self, deployment: Manifest) -> None:
        """Two steps: a surge of new servers that are not ready yet, then only new ones."""
        done = self._deployment_status(deployment)
        self.pods = [pod for pod in self.pods if pod not in self.pods_of(deployment)]
        if done.get("unavailableReplicas"):
            deployment["status"] = done
            set_state(self.start_pod(deployment), "Running", {"running": {"startedAt": stamp(self.now)}})
            return
        status = deployment.get("status") or {}
        surge = {**done, "updatedReplicas": 1, "unavailableReplicas": 1, "replicas": status.get("replicas", 0) + 1}
        surge |= {key: status.get(key, 0) for key in ("readyReplicas", "availableReplicas")}
        deployment["status"] = done if status.get("unavailableReplicas") else surge

    # Both

    def run(self, *, until: Callable[[Cluster], bool] = lambda _: False, limit: int = 200) -> Cluster:
        """Pass and move in turn, until nothing moves any more."""
        for _ in range(limit):
            self.execute(self.plan())
            if until(self):
                return self
            moves = self.moves()
            if not moves:
                plan = self.plan()
                idle = (plan.requeue_after or PATIENCE) >= PATIENCE and not (plan.apply or plan.delete)
                if idle and plan.status == self.job.status:
                    return self
                self.now += timedelta(seconds=15)
                continue
            self.now += timedelta(seconds=1)
            moves[0]()
        raise AssertionError(f"not steady after {limit} moves: {self.job.status.to_wire()}")

    def change(self, **spec: Any) -> Cluster:
        """The user applies another spec."""
        wire = {**self.job.spec.to_wire(), **spec}
        wire = {key: value for key, value in wire.items() if value is not None}
        changed = make_job(self.job.metadata.name, self.job.metadata.generation + 1, self.job.metadata.uid, **wire)
        self.job = changed.model_copy(update={"status": self.job.status})
        return self

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason."""
        found = next(c for c in self.job.status.conditions if c.type == kind)
        return found.status, found.reason

    def events(self) -> list[str]:
        return [event.reason for plan in self.plans for event in plan.events]


def indexes(job: Manifest) -> list[str]:
    """The completion indexes of an Indexed Job's pods; an empty one of the pod of another."""
    indexed = job["spec"].get("completionMode") == "Indexed"
    return [str(number) for number in range(job["spec"]["completions"])] if indexed else [""]


def _exit_code(pod: Manifest) -> int:
    return int(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"])


def set_state(pod: Manifest, phase: str, state: dict[str, Any]) -> None:
    pod["status"] |= {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]}
