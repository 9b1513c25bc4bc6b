"""The cluster that the end-to-end tests run against: the built-in node, or one of the developer's own.

With KUBECONFIG_E2E set to a kubeconfig that cluster is used, and nothing is started or installed here. It must have
a default StorageClass, and these images must be where its nodes can pull them (or on the nodes already):

    FINETUNE_E2E_OPERATOR_IMAGE   built from Dockerfile
    FINETUNE_E2E_TRAINER_IMAGE    built from trainer-image/Dockerfile
    FINETUNE_E2E_PYTHON_IMAGE     any image with python3 and tar; docker.io/library/python:3.12-slim when not set
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tests.cluster import binaries, images, kueue_install
from tests.cluster.errors import Unavailable
from tests.cluster.kubectl import Kubectl
from tests.cluster.node import Node
from tests.cluster.volumes import bind, claim_manifest

DEFAULT_PYTHON_IMAGE = "docker.io/library/python:3.12-slim"


class Cluster(Protocol):
    """What the end-to-end tests need of a cluster."""

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as someone who may do everything."""

    @property
    def is_local(self) -> bool:
        """Whether the node is this machine, so that a claim's folder can be looked into."""

    def operator_image(self) -> str:
        """The name of the operator's image; its nodes have it."""

    def trainer_image(self) -> str:
        """The name of the trainer's image; its nodes have it."""

    def python_image(self) -> str:
        """The name of a plain Python image."""

    def claim(self, folder: Path, namespace: str, name: str) -> None:
        """Makes a PersistentVolumeClaim that holds the folder's content."""

    def files(self, namespace: str, claim: str) -> list[str]:
        """The paths of all files in a claim that `claim` made, relative to its root."""

    def set_gpus(self, count: int) -> None:
        """Pretends that a node has this many GPUs."""

    def install_kueue(self) -> None:
        """Installs the real Kueue, with a ResourceFlavor `any`."""


class LocalCluster:
    """The built-in node, with the images built from this checkout."""

    is_local = True

    def __init__(self, node: Node) -> None:
        self.node = node
        self.folders: dict[tuple[str, str], Path] = {}

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as the administrator."""
        return self.node.kubectl

    def operator_image(self) -> str:
        """Builds and loads the operator's image."""
        return self._loaded(images.operator_image())

    def trainer_image(self) -> str:
        """Builds and loads the trainer's image."""
        return self._loaded(images.trainer_image())

    def python_image(self) -> str:
        """Builds and loads the base image."""
        return self._loaded(images.python_image())

    def claim(self, folder: Path, namespace: str, name: str) -> None:
        """A claim on the folder itself: what pods write is seen here at once."""
        bind(self.kubectl, namespace=namespace, claim=name, folder=folder)
        self.folders[namespace, name] = folder

    def files(self, namespace: str, claim: str) -> list[str]:
        """What lies in the claim's folder."""
        folder = self.folders[namespace, claim]
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]

    def set_gpus(self, count: int) -> None:
        """Pretends that the node has this many GPUs."""
        self.node.set_gpus(count)

    def install_kueue(self) -> None:
        """Installs it, once."""
        if not self.kubectl.get("namespace", kueue_install.NAMESPACE):
            kueue_install.install_kueue(self.node)

    def _loaded(self, image: images.Image) -> str:
        self.node.load_image(image.archive)
        return image.name


class ForeignCluster:
    """A cluster of the developer's own."""

    is_local = False

    def __init__(self, kubeconfig: Path) -> None:
        if not kubeconfig.exists():
            raise Unavailable(f"KUBECONFIG_E2E={kubeconfig} does not exist; set it to a kubeconfig, or unset it")
        binary = shutil.which("kubectl")
        self.kubectl = Kubectl(Path(binary) if binary else binaries.kube_assets() / "kubectl", kubeconfig)

    def operator_image(self) -> str:
        """The image that the developer names."""
        return _named("FINETUNE_E2E_OPERATOR_IMAGE", "Dockerfile")

    def trainer_image(self) -> str:
        """The image that the developer names."""
        return _named("FINETUNE_E2E_TRAINER_IMAGE", "trainer-image/Dockerfile")

    def python_image(self) -> str:
        """Python's own image, unless another is named."""
        return os.environ.get("FINETUNE_E2E_PYTHON_IMAGE", DEFAULT_PYTHON_IMAGE)

    def claim(self, folder: Path, namespace: str, name: str) -> None:
        """A claim of the default StorageClass, filled with a copy of the folder by a short-lived pod."""
        self.kubectl.apply(claim_manifest(namespace, name))
        with self._pod_on(namespace, name) as pod:
            self.kubectl("cp", f"{folder}/.", f"{namespace}/{pod}:/data", timeout=600)

    def files(self, namespace: str, claim: str) -> list[str]:
        """What a short-lived pod sees in the claim."""
        script = (
            "import pathlib; [print(p.relative_to('/data')) for p in pathlib.Path('/data').rglob('*') if p.is_file()]"
        )
        with self._pod_on(namespace, claim) as pod:
            return self.kubectl("exec", pod, "--", "python3", "-c", script, namespace=namespace).splitlines()

    @contextlib.contextmanager
    def _pod_on(self, namespace: str, claim: str) -> Iterator[str]:
        pod = f"look-{claim}"
        self.kubectl.apply(_pod_on_claim(pod, self.python_image(), namespace, claim))

        def running() -> bool:
            return (self.kubectl.get("pod", pod, namespace) or {"status": {}})["status"].get("phase") == "Running"

        try:
            self.kubectl.wait_until(running, 300, f"pod {pod} on the claim {claim}", namespace)
            yield pod
        finally:
            self.kubectl("delete", "pod", pod, "--now", namespace=namespace)

    def set_gpus(self, count: int) -> None:
        """Not on a cluster that is not ours."""
        raise Unavailable("GPUs are only pretended on the built-in node; unset KUBECONFIG_E2E")

    def install_kueue(self) -> None:
        """Not on a cluster that is not ours."""
        raise Unavailable("Kueue is only installed on the built-in node; unset KUBECONFIG_E2E")


def _named(variable: str, dockerfile: str) -> str:
    name = os.environ.get(variable)
    if not name:
        raise Unavailable(f"set {variable} to an image built from {dockerfile} that your cluster's nodes can pull")
    return name


def _pod_on_claim(pod: str, image: str, namespace: str, claim: str) -> dict[str, Any]:
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "look",
        "image": image,
        "command": ["python3", "-c", "import time; time.sleep(3600)"],
        "securityContext": security,
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"fsGroup": 65532},
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": namespace}, "spec": spec}
