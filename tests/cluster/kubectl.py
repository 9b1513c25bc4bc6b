"""kubectl as Python calls, and what to print when a cluster does not do what it should."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.cluster.errors import ClusterError, CommandFailed
from tests.cluster.processes import run, start, wait_until

Value = TypeVar("Value")
Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Kubectl:
    """kubectl for one kubeconfig. `kubectl("get", "pods", namespace="x")` returns what it prints."""

    binary: Path
    kubeconfig: Path

    def __call__(
        self, *args: str | Path, input: str | None = None, namespace: str | None = None, timeout: float = 60
    ) -> str:
        """Runs it; raises CommandFailed with its message when it ends with an error."""
        place = ("--namespace", namespace) if namespace else ()
        return run(self.binary, *place, *args, input=input, timeout=timeout, env=self.environment())

    def environment(self) -> dict[str, str]:
        """The environment in which any client talks to this cluster."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def json(self, *args: str | Path, namespace: str | None = None) -> Any:
        """The parsed answer of a command that takes `-o json`."""
        return json.loads(self(*args, "-o", "json", namespace=namespace))

    def get(self, kind: str, name: str, namespace: str | None = None) -> Any | None:
        """One object, or None when there is none of that name."""
        text = self("get", kind, name, "--ignore-not-found", "-o", "json", namespace=namespace)
        return json.loads(text) if text.strip() else None

    def apply(self, *manifests: Manifest | str, namespace: str | None = None, server_side: bool = False) -> str:
        """Applies manifests, given as dictionaries or as YAML."""
        # One list in place of several documents: old versions of kubectl cannot read JSON after `---`.
        items = [item for each in manifests for item in (yaml.safe_load_all(each) if isinstance(each, str) else [each])]
        everything = {"apiVersion": "v1", "kind": "List", "items": [item for item in items if item]}
        flags = ("--server-side",) if server_side else ()
        return self("apply", *flags, "-f", "-", input=json.dumps(everything), namespace=namespace)

    def make_namespace(self, name: str, pod_security: str = "restricted") -> str:
        """A namespace in which this Pod Security level is enforced; returns its name.

        Waits for one of that name that is going away, as an earlier run leaves it.
        """

        def is_free() -> bool:
            found = self.get("namespace", name)
            return found is None or found["status"].get("phase") == "Active"

        self.wait_until(is_free, 180, f"the old namespace {name} to go", name)
        labels = {"pod-security.kubernetes.io/enforce": pod_security}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        return name

    def wait_until(
        self, predicate: Callable[[], Value], timeout: float, what: str, namespace: str | None = None
    ) -> Value:
        """Like processes.wait_until, and when it gives up tells the state of the namespace."""
        explain = (lambda: self.explain(namespace)) if namespace else None
        return wait_until(predicate, timeout, what, explain, interval=0.2)

    def explain(self, namespace: str) -> str:
        """Objects, events, and of every pod its description and its logs: what a person would look at first."""
        parts = [
            self._try("get", "all,pvc,finetunejobs.finetune-operator.io", "-o", "wide", namespace=namespace),
            self._try("get", "finetunejobs.finetune-operator.io", "-o", "yaml", namespace=namespace)[-8000:],
            self._try("describe", "jobs", namespace=namespace)[-4000:],
            self._try("get", "events", "--sort-by=.lastTimestamp", namespace=namespace)[-4000:],
        ]
        for pod in self._try("get", "pods", "-o", "name", namespace=namespace).split():
            parts.append(self._try("describe", pod, namespace=namespace)[-2500:])
            for previous in ((), ("--previous",)):
                text = self._try("logs", pod, "--all-containers", "--tail=30", *previous, namespace=namespace)
                parts.append(f"--- logs {pod} {' '.join(previous)}\n{text}")
        return "\n".join(part for part in parts if part)

    @contextlib.contextmanager
    def port_forward(self, target: str, port: int, namespace: str) -> Iterator[int]:
        """Forwards a port of a pod or Service (`service/x`); yields the local port, closes it at the end."""
        command: list[str | Path] = [self.binary, "--namespace", namespace, "port-forward", target, f":{port}"]
        with tempfile.TemporaryDirectory(prefix="port-forward-") as folder:
            forward = start("port-forward", command, Path(folder), env=self.environment())

            def local_port() -> int:
                found = re.search(r"127\.0\.0\.1:(\d+)", forward.log.read_text())
                if not found and not forward.running():
                    raise CommandFailed("port-forward ended")
                return int(found.group(1)) if found else 0

            try:
                yield wait_until(local_port, 30, f"port-forward to {target}", forward.tail)
            finally:
                forward.end()

    def _try(self, *args: str, namespace: str) -> str:
        try:
            return self(*args, namespace=namespace)
        except ClusterError as error:
            text = str(error)
            return "" if "previous terminated container" in text or "doesn't have a resource" in text else text


def pod_phases(kubectl: Kubectl, selector: str, namespace: str) -> Sequence[str]:
    """The phases of the pods that a label selector matches."""
    items = kubectl.json("get", "pods", "-l", selector, namespace=namespace)["items"]
    return [item["status"].get("phase", "Unknown") for item in items]
