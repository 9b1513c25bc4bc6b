"""The product as a platform engineer has it: a Helm release on a cluster, and what one can see of a job."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import documented
from tests.cluster.environment import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.processes import run
from tests.documented import CLUSTER

CHART = "charts/finetune-operator"
VALUES = "images.yaml"
NAMESPACE = "finetune-system"
RELEASE = "finetune-operator"
Job = dict[str, Any]


@dataclass
class Product:
    """The installed operator. Every method acts as an administrator would, with helm and kubectl, in `checkout`."""

    kubectl: Kubectl
    helm: Path
    checkout: Path
    namespace: str = NAMESPACE
    installed: bool = field(default=False)

    def environment(self, kubeconfig: Path | None = None) -> dict[str, str]:
        """Where a shell finds helm, kubectl and the cluster."""
        programs = f"{self.kubectl.binary.parent}:{self.helm.parent}:{os.environ['PATH']}"
        return {**self.kubectl.environment(), "PATH": programs} | (
            {"KUBECONFIG": str(kubeconfig)} if kubeconfig else {}
        )

    def install_as_documented(self) -> None:
        """The README's own line; waits until the operator is available."""
        [line] = [command.text for command in documented.commands(CLUSTER) if command.text.startswith("helm install ")]
        run("bash", "-c", line, env=self.environment(), cwd=self.checkout, timeout=240)
        self.installed = True
        self._wait_available()

    def install(self, **values: str) -> None:
        """`helm upgrade --install` with these values on top, and waits until the operator is available."""
        command = [self.helm, "upgrade", "--install", RELEASE, CHART, "--namespace", self.namespace]
        flags = [flag for key, value in values.items() for flag in ("--set-string", f"{key}={value}")]
        # Without --wait: that gives up without a word about the reason.
        run(*command, "--values", VALUES, *flags, env=self.environment(), cwd=self.checkout, timeout=240)
        self.installed = True
        self._wait_available()

    def _wait_available(self) -> None:
        def available() -> bool:
            deployment = self.kubectl.get("deployment", RELEASE, self.namespace) or {}
            status, wanted = deployment.get("status", {}), deployment.get("spec", {}).get("replicas")
            seen = status.get("observedGeneration") == deployment.get("metadata", {}).get("generation")
            counts = {status.get(name) for name in ("replicas", "updatedReplicas", "availableReplicas")}
            return seen and counts == {wanted}

        self.kubectl.wait_until(available, 180, "the operator to be available", self.namespace)

    def uninstall(self) -> None:
        """`helm uninstall`, and waits until the operator's pods are gone."""
        run(
            self.helm,
            "uninstall",
            RELEASE,
            "--namespace",
            self.namespace,
            "--wait",
            env=self.environment(),
            timeout=180,
        )
        self.installed = False

    def scale(self, replicas: int) -> None:
        """Takes the operator away (0) or brings it back, and waits until that is so."""
        self.kubectl("scale", f"deployment/{RELEASE}", f"--replicas={replicas}", namespace=self.namespace)
        if replicas:
            self._wait_available()
            return
        self.kubectl.wait_until(lambda: not self.operator_pods(), 90, "the operator's pods to go", self.namespace)

    def kill_operator(self) -> None:
        """Ends every operator pod at once, without its grace period."""
        for pod in self.operator_pods():
            self.kubectl("delete", "pod", pod, "--grace-period=0", "--force", namespace=self.namespace)

    def operator_pods(self) -> list[str]:
        items = self.kubectl.json(
            "get", "pods", "-l", "app.kubernetes.io/name=finetune-operator", namespace=self.namespace
        )["items"]
        return [item["metadata"]["name"] for item in items]


@dataclass
class Tenant:
    """A namespace with Pod Security `restricted`, a claim `models` for results and a claim `sources` with inputs."""

    cluster: Cluster
    name: str

    @property
    def kubectl(self) -> Kubectl:
        return self.cluster.kubectl

    def apply(self, *manifests: Job) -> None:
        self.kubectl.apply(*manifests, namespace=self.name)

    def job(self, name: str) -> Job:
        """The FineTuneJob as the API server has it."""
        found: Job = self.kubectl.json("get", "finetunejob", name, namespace=self.name)
        return found

    def wait_for(self, name: str, until: Callable[[Job], Any], seconds: float, what: str) -> Job:
        """The job as soon as `until(job)` holds; gives up with everything one would look at first."""

        def seen() -> Job | None:
            job = self.job(name)
            return job if until(job) else None

        found = self.kubectl.wait_until(seen, seconds, f"{name}: {what}", self.name)
        assert found is not None
        return found

    def wait_ready(self, name: str, seconds: float = 600) -> Job:
        """Ready for the generation that is stored now. A Stalled job is reported at once."""

        def settled(job: Job) -> bool:
            return current(job) and (condition(job, "Ready") == "True" or condition(job, "Stalled") == "True")

        job = self.wait_for(name, settled, seconds, "Ready")
        assert condition(job, "Ready") == "True", json.dumps(job["status"], indent=1)
        return job

    def children(self, kind: str, job: str) -> list[Job]:
        selector = f"finetune-operator.io/job={job}"
        items: list[Job] = self.kubectl.json("get", kind, "-l", selector, namespace=self.name)["items"]
        return items

    def child_names(self, kind: str, job: str) -> set[str]:
        return {item["metadata"]["name"] for item in self.children(kind, job)}


@contextmanager
def tenancy(cluster: Cluster, name: str, inputs: Path, folder: Path) -> Iterator[Tenant]:
    """A tenant with both claims bound, to a copy of `inputs` and to `folder`/models, which may be there. Removed at the
    end, and its children with it."""
    cluster.kubectl.make_namespace(name)
    sources, models = folder / "sources", folder / "models"
    shutil.copytree(inputs, sources)
    models.mkdir(exist_ok=True)
    cluster.claim(models, name, "models")
    cluster.claim(sources, name, "sources")
    yield Tenant(cluster, name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def status(job: Job) -> Job:
    found: Job = job.get("status", {})
    return found


def current(job: Job) -> bool:
    """Whether the status is about the spec that is stored."""
    return bool(status(job).get("observedGeneration") == job["metadata"]["generation"])


def condition(job: Job, kind: str) -> str:
    """Status of a condition: True, False, Unknown, or Missing."""
    return next((each["status"] for each in status(job).get("conditions", []) if each["type"] == kind), "Missing")


def run_of(job: Job) -> Job:
    found: Job = status(job).get("run", {})
    return found


def failure(job: Job) -> Job:
    found: Job = run_of(job).get("failure") or {}
    return found
