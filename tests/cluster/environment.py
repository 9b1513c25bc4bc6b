"""The cluster that the end-to-end tests run against: the built-in node, or one of the developer's own.

With KUBECONFIG_E2E set to a kubeconfig that cluster is used, and nothing is started or installed here. It must have
a default StorageClass, and these images must be where its nodes can pull them (or on the nodes already):

    FINETUNE_E2E_OPERATOR_IMAGE   built from Dockerfile
    FINETUNE_E2E_TRAINER_IMAGE    built from trainer-image/Dockerfile
    FINETUNE_E2E_PYTHON_IMAGE     any image with python3 and tar; docker.io/library/python:3.12-slim when not set
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from tests.cluster import binaries, images
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

    def set_gpus(self, count: int) -> None:
        """Pretends that a node has this many GPUs."""


class LocalCluster:
    """The built-in node, with the images built from this checkout."""

    is_local = True

    def __init__(self, node: Node) -> None:
        self.node = node

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

    def set_gpus(self, count: int) -> None:
        """Pretends that the node has this many GPUs."""
        self.node.set_gpus(count)

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
        loader = f"load-{name}"
        self.kubectl.apply(_loader_pod(loader, self.python_image(), namespace, name))
        ready = ("--for=condition=Ready", "--timeout=300s")
        self.kubectl("wait", f"pod/{loader}", *ready, namespace=namespace, timeout=330)
        self.kubectl("cp", f"{folder}/.", f"{namespace}/{loader}:/data", timeout=600)
        self.kubectl("delete", "pod", loader, "--now", namespace=namespace)

    def set_gpus(self, count: int) -> None:
        """Not on a cluster that is not ours."""
        raise Unavailable("GPUs are only pretended on the built-in node; unset KUBECONFIG_E2E")


def _named(variable: str, dockerfile: str) -> str:
    name = os.environ.get(variable)
    if not name:
        raise Unavailable(f"set {variable} to an image built from {dockerfile} that your cluster's nodes can pull")
    return name


def _loader_pod(pod: str, image: str, namespace: str, claim: str) -> dict[str, Any]:
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "load",
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
