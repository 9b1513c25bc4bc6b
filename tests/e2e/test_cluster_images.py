"""The two images, as the Dockerfiles make them: small, without tools, and at home under Pod Security `restricted`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import images
from tests.cluster.environment import Cluster
from tests.cluster.kubectl import Kubectl

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,  # without runAsUser: the image itself must name a user
    "readOnlyRootFilesystem": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
TOOLS = "import shutil; print([t for t in ('gcc', 'cc', 'g++', 'ld', 'make', 'pip', 'pip3') if shutil.which(t)])"


@pytest.fixture(scope="module")
def namespace(node_cluster: Cluster) -> Iterator[str]:
    yield node_cluster.kubectl.make_namespace("image-check", pod_security="restricted")
    node_cluster.kubectl("delete", "namespace", "image-check", "--wait=false")


def output(kubectl: Kubectl, namespace: str, name: str, image: str, script: str) -> str:
    """What a line of Python prints in the image."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", script],
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    kubectl.apply(pod, namespace=namespace)

    def phase() -> str:
        found = kubectl.json("get", "pod", name, namespace=namespace)["status"].get("phase")
        return found if found in ("Succeeded", "Failed") else ""

    ended = kubectl.wait_until(phase, 180, f"end of pod {name}", namespace)
    text = kubectl("logs", name, namespace=namespace).strip()
    assert ended == "Succeeded", text
    return text


def test_operator_image_is_below_250_mb(node_cluster: Cluster) -> None:
    if not node_cluster.is_local:
        pytest.skip("the image of KUBECONFIG_E2E's cluster is not built here")
    assert images.operator_image().megabytes < 250


@pytest.mark.parametrize(
    ("name", "modules"),
    [("operator", "finetune_operator, kopf, kubernetes.aio.client, jwt"), ("trainer", "finetune_trainer, trl, peft")],
)
def test_image_imports_what_it_needs_and_has_no_tools(
    node_cluster: Cluster, namespace: str, name: str, modules: str
) -> None:
    image = node_cluster.operator_image() if name == "operator" else node_cluster.trainer_image()
    script = f"import {modules}; import os, getpass; print(os.getuid(), getpass.getuser()); {TOOLS}"
    assert output(node_cluster.kubectl, namespace, name, image, script).splitlines()[-2:] == ["65532 nonroot", "[]"]


@pytest.mark.parametrize("name", ["operator", "trainer"])
def test_image_has_the_entry_point(node_cluster: Cluster, namespace: str, name: str) -> None:
    image = node_cluster.operator_image() if name == "operator" else node_cluster.trainer_image()
    script = f"import os; print(os.access('/app/bin/finetune-{name}', os.X_OK))"
    assert output(node_cluster.kubectl, namespace, f"{name}-entry", image, script) == "True"
