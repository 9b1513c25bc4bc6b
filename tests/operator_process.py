"""The operator as a process of its own beside a real API server, and what a kubelet would have said."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.crd import crd_yaml
from finetune_operator.control.permissions import WATCHED_NAMESPACES, own_namespace, rules
from tests.cluster.control_plane import ControlPlane
from tests.cluster.credentials import User, write_kubeconfig
from tests.cluster.processes import Component, free_ports, start, wait_until

ROOT = Path(__file__).resolve().parents[1]
GROUP = "finetune-operator.io"
SOURCES = os.pathsep.join(str(ROOT / part) for part in ("api/src", "operator/src", "trainer-image/src"))
PATIENCE = 60  # seconds; two busy cores may be slow, a broken operator is slower


@dataclass
class OperatorProcess:
    """One replica."""

    component: Component
    health: str

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of one of the plain HTTP paths."""
        try:
            with urllib.request.urlopen(self.health + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, /, **labels: str) -> float:
        """The sum of all series of this name that carry these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            match = re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", line)
            if match and match[1] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                total += float(match[3]) if labels.items() <= found.items() else 0
        return total

    def writes(self) -> float:
        """Requests that changed something, the Lease's aside."""
        return sum(
            self.metric("finetune_api_requests_total", verb=verb, code="200")
            - self.metric("finetune_api_requests_total", verb=verb, code="200", resource="leases")
            for verb in ("POST", "PUT", "PATCH", "DELETE")
        )

    def reads(self) -> float:
        """GETs and LISTs, the Lease's aside."""
        return sum(
            self.metric("finetune_api_requests_total", verb=verb)
            - self.metric("finetune_api_requests_total", verb=verb, resource="leases")
            for verb in ("GET", "LIST")
        )

    def passes(self) -> float:
        return self.metric("finetune_reconcile_seconds_count")

    def wait_for_log(self, text: str, timeout: float = PATIENCE) -> None:
        wait_until(lambda: text in self.component.log.read_text(), timeout, f"log: {text}", self.component.tail)

    def signal(self, number: signal.Signals) -> None:
        assert self.component.process
        self.component.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no release, no farewell."""
        self.component.end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.component.process
        self.signal(signal.SIGTERM)
        return self.component.process.wait(30)


def start_operator(
    plane: ControlPlane, folder: Path, name: str = "operator", user: str = "operator", **variables: str
) -> OperatorProcess:
    """Starts a replica; returns when it answers its probes."""
    (port,) = free_ports(1)
    # The image has bytecode: where Python may write none, each start would compile all libraries anew.
    foreign = ("FINETUNE_", "POD_", "KUBE", "PYTHONDONTWRITEBYTECODE")
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith(foreign)},
        "PYTHONPATH": SOURCES,
        "KUBECONFIG": str(plane.kubeconfig_of(user)),
        "FINETUNE_HEALTH_HOST": "127.0.0.1",
        "FINETUNE_HEALTH_PORT": str(port),
        "FINETUNE_PROGRESS_HOST": "127.0.0.1",
        **variables,
    }
    component = start(name, [sys.executable, "-m", "finetune_operator"], folder, env=env)
    operator = OperatorProcess(component, f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: _alive(operator) and operator.get("/readyz")[0] == 200, PATIENCE, name, component.tail)
    except BaseException:
        component.end(signal.SIGKILL)
        raise
    return operator


def _alive(operator: OperatorProcess) -> bool:
    if not operator.component.running():
        raise AssertionError(f"the operator ended:\n{operator.component.tail()}")
    return True


@contextlib.contextmanager
def running_operator(plane: ControlPlane, folder: Path, **variables: str) -> Iterator[OperatorProcess]:
    """A replica that is ended at the end of the block, whatever happens."""
    operator = start_operator(plane, folder, **variables)
    try:
        yield operator
    finally:
        operator.kill()


HOME = "finetune-system"


def prepared(plane: ControlPlane) -> ControlPlane:
    """The CRD, the operator's namespace and its service account, with nothing but the declared rights."""
    install_crd(plane)
    plane.kubectl.make_namespace(HOME)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator", "namespace": HOME}}
    plane.kubectl.apply(account)
    _grant(plane, HOME, rules(own_namespace()))
    token = plane.kubectl("create", "token", "operator", "--duration=24h", namespace=HOME).strip()
    write_kubeconfig(plane.kubeconfig_of("operator"), plane.url, plane.ca, User("operator", token=token))
    return plane


def make_namespace(plane: ControlPlane, name: str) -> str:
    """A namespace in which the operator has its declared rights."""
    plane.kubectl.make_namespace(name)
    _grant(plane, name, rules(WATCHED_NAMESPACES))
    return name


def _grant(plane: ControlPlane, namespace: str | None, granted: list[dict[str, Any]]) -> None:
    """A Role and its binding in the namespace; a ClusterRole when it is None."""
    prefix = "" if namespace else "Cluster"
    metadata = {"name": "operator", **({"namespace": namespace} if namespace else {})}
    api = "rbac.authorization.k8s.io"
    plane.kubectl.apply(
        {"apiVersion": f"{api}/v1", "kind": f"{prefix}Role", "metadata": metadata, "rules": granted},
        {
            "apiVersion": f"{api}/v1",
            "kind": f"{prefix}RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": api, "kind": f"{prefix}Role", "name": "operator"},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": HOME}],
        },
    )


@contextlib.contextmanager
def cluster_wide_rights(plane: ControlPlane) -> Iterator[None]:
    """The declared rights in all namespaces, for the length of a test."""
    _grant(plane, None, rules(WATCHED_NAMESPACES))
    try:
        yield
    finally:
        plane.kubectl("delete", "clusterrole,clusterrolebinding", "operator")


def install_crd(plane: ControlPlane) -> None:
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=crd_yaml())
    # `kubectl wait` fails on a CRD that has no status yet; an empty list of objects is the proof.
    plane.kubectl.wait_until(lambda: plane.kubectl.json("get", f"finetunejobs.{GROUP}", "-A"), PATIENCE, "the CRD")


def job_manifest(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """A small FineTuneJob; `spec` replaces parts of its spec."""
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "baseModel": {"source": "pvc://models/base/tiny"},
            "dataset": {"train": {"configMapRef": {"name": "data", "key": "train.jsonl"}}},
            "compute": {"gpus": 0},
            "output": {"claimName": "models"},
            **spec,
        },
    }


def children(plane: ControlPlane, namespace: str) -> list[tuple[str, str, str]]:
    """(kind, name, uid) of everything that the operator made in a namespace, sorted."""
    found = plane.kubectl.json(
        "get",
        "jobs,configmaps,deployments,services",
        "-l",
        "app.kubernetes.io/managed-by=finetune-operator",
        namespace=namespace,
    )
    return sorted((each["kind"], each["metadata"]["name"], each["metadata"]["uid"]) for each in found["items"])


def status_of(plane: ControlPlane, namespace: str, name: str) -> dict[str, Any]:
    found = plane.kubectl.get("finetunejob", name, namespace=namespace)
    return (found or {}).get("status", {})


def condition(status: dict[str, Any], kind: str) -> tuple[str, str]:
    """(status, reason) of a condition; empty while it is absent."""
    return next(
        ((each["status"], each["reason"]) for each in status.get("conditions", ()) if each["type"] == kind), ("", "")
    )


def wait_idle(operator: OperatorProcess) -> None:
    """No pass for a while that is longer than the echo of any write."""
    seen = [operator.passes(), 0]

    def quiet() -> bool:
        now = operator.passes()
        seen[:] = [now, seen[1] + 1 if now == seen[0] else 0]
        return seen[1] >= 10

    wait_until(quiet, PATIENCE, "no more passes", operator.component.tail)


class Kubelet:
    """Says of pods what a kubelet would say, so that the Job and Deployment controllers go on."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._namespace = namespace

    def pod(self, selector: str) -> dict[str, Any]:
        """The one live pod that a label selector matches, as soon as its controller has made it."""

        def found() -> dict[str, Any] | None:
            items = self._plane.kubectl.json("get", "pods", "-l", selector, namespace=self._namespace)["items"]
            live = [each for each in items if each["status"].get("phase", "Pending") in ("Pending", "Running")]
            return live[0] if live else None

        result = self._plane.kubectl.wait_until(found, PATIENCE, f"a pod of {selector}", self._namespace)
        assert result
        return result

    def run(self, selector: str) -> dict[str, Any]:
        """The pod runs and is ready; another one, where a controller has just taken that pod away."""

        def ran() -> dict[str, Any]:
            pod = self.pod(selector)
            self._patch(pod, "Running", {"running": {"startedAt": _now()}}, ready=True)
            return pod

        return wait_until(ran, PATIENCE, f"a pod of {selector} that stays")

    def end(self, selector: str, message: str, exit_code: int = 0) -> None:
        """The pod's container ends with this termination message."""
        pod = self.pod(selector)
        state = {
            "terminated": {
                "exitCode": exit_code,
                "reason": "Error" if exit_code else "Completed",
                "message": message,
                "startedAt": pod["status"].get("startTime") or _now(),
                "finishedAt": _now(),
            }
        }
        self._patch(pod, "Failed" if exit_code else "Succeeded", state, ready=False)

    def falls(self, selector: str, message: str) -> None:
        """The pod's container ended with this message and is about to be started again."""
        ended = {"exitCode": 13, "reason": "Error", "message": message, "startedAt": _now(), "finishedAt": _now()}
        self._patch(self.pod(selector), "Running", {"terminated": ended}, ready=False)

    def _patch(self, pod: dict[str, Any], phase: str, state: dict[str, Any], *, ready: bool) -> None:
        container = pod["spec"]["containers"][0]
        status = {
            "phase": phase,
            "startTime": pod["status"].get("startTime") or _now(),
            "conditions": [
                {"type": kind, "status": "True" if ready else "False", "lastTransitionTime": _now()}
                for kind in ("Ready", "ContainersReady")
            ],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": ready,
                    "started": ready,
                    "restartCount": 0,
                    "state": state,
                }
            ],
        }
        self._plane.kubectl(
            "patch",
            "pod",
            pod["metadata"]["name"],
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps({"status": status}),
            namespace=self._namespace,
        )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
